"""How many workers of which kind: the simulator asked about a user's own traffic.

traffic    a trace, or a generator at a rate, as often as there are seeds
engines    how quick an engine is, and how much KV it holds
cells      fleets, and what one seed of one comes to
search     the best of them, and how sure that is
plateau    where what is as good as the best ends
fewest     how many workers are enough
backtest   the simulator against a measured run
same_traffic   whether that run was of the traffic that is planned for
usage      what is wrong with a command line by itself
report     all of it in words; flatness what is as good as the best
"""
