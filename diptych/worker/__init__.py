"""The process shell that prefill and decode workers share: engine thread, frames, peers, membership, start and stop.

What differs between the two is their service (`prefill_worker.service`, `decode_worker.service`): what they accept
from a router, and what they do when the engine or the transfer thread reports something.
"""
