"""How many workers each phase needs, from what the workers report. Pure: time is given, nothing is started or asked.

settings     what a user may set: limits in milliseconds, bounds in workers
signals      what is known of the pools at one moment
meter        keeps consecutive reports, makes rates of counters
prefill      queueing delay against the TTFT limit
decode       KV headroom and inter-token latency against the TPOT limit
steadying    up at once, down late, never on silence
policy       all of it: a moment in, wanted counts and their reasons out

The controller drives it, and so does the simulator (`benchmarks.autoscale`).
"""

from deploy.autoscale.policy import Autoscaler
from deploy.autoscale.settings import AutoscaleSettings, Bounds
from deploy.autoscale.signals import Decision, PoolView, Report, Verdict

__all__ = ["AutoscaleSettings", "Autoscaler", "Bounds", "Decision", "PoolView", "Report", "Verdict"]
