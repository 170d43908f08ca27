"""Which part of a run is measured, once it is over: from when to when, and which requests. Pure.

An open loop is measured until the time that was asked for, or its last request was due where the workload or the number
of requests ended it. A closed loop is measured for as long as it was asked to send, or until its last answer where that
came first: what it gets done in a time is known when the answers are there, not when the last request goes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadgen.client.config import RunConfig
from loadgen.client.plan import Plan, window_ms
from loadgen.client.records import Record

Window = tuple[float, float]  # milliseconds from the start of the run


def measured_window(config: RunConfig, plan: Plan, records: Sequence[Record], interrupted: bool) -> Window:
    """Empty, at the end, where warm-up and tail leave nothing.

    Args:
        interrupted: then nothing is measured after the last answer.
    """
    last_ms = last_answer_ms(records)
    horizon_ms = _asked_ms(config) if plan.horizon_ms is None else plan.horizon_ms
    if plan.horizon_ms is None or interrupted:
        horizon_ms = min(horizon_ms, last_ms)
    try:
        start, end = window_ms(config, horizon_ms)
    except ValueError:
        return horizon_ms + 1, horizon_ms + 1  # all of it is warm-up
    return (start, max(end, last_ms)) if _is_moment(plan, (start, end)) else (start, end)


def last_answer_ms(records: Sequence[Record]) -> float:
    return max((each.intended_ms + (each.e2e_ms or 0.0) for each in records), default=0.0)


def ran_out(config: RunConfig, plan: Plan, records: Sequence[Record]) -> bool:
    """All that the workload had was sent before the time, or the number, that was asked for."""
    if plan.horizon_ms is not None:
        return plan.ran_out
    if len(records) < len(plan.requests):
        return False
    short = config.num_requests is not None and len(plan.requests) < config.num_requests
    return short or (config.num_requests is None and last_answer_ms(records) < _asked_ms(config))


def _asked_ms(config: RunConfig) -> float:
    return math.inf if config.duration_s is None else config.duration_s * 1e3


def _is_moment(plan: Plan, window: Window) -> bool:
    """All that an open loop measures was due at once, at the end of the window: sending took no time, so the time until
    the answers were there is the only one that there is."""
    inside = [each.due_ms for each in plan.requests if window[0] <= each.due_ms <= window[1]]
    return plan.horizon_ms is not None and bool(inside) and min(inside) == window[1]
