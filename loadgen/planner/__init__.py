"""How many workers of which kind: the simulator asked about a user's own traffic.

traffic    a trace, or a generator at a rate, as often as there are seeds
engines    how quick an engine is, and how much KV it holds
cells      fleets, and what one seed of one comes to
search     the best of them, and how sure that is
backtest   the simulator against a measured run
report     all of it in words
"""
