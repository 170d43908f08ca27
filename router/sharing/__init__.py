"""Routers of one cluster share the load they place, so that they do not all choose the same idle worker.

load          what each router has said of its bookings, and what is to be said of one's own; pure
log           the log in Redis in which they say it, and the compare-and-append by which one of them goes first
talk          one router's part in it: what to say, what was heard, when to stop asking
reservations  requests choose, and reserve if nobody was first
breaker       keeps requests from waiting for a Redis that is gone or slow; pure
metrics       what Prometheus is told

Why it is done so: docs/decisions/050-routers-place-in-turn.md.
"""
