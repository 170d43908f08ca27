"""How full each phase was over time: requests in it, and workers that had one. From what requests report of their cost.

A request's prompt is computed until its first token, and waits before that; its KV is on the way for what the transfer
exposed; then it decodes until its last token. Failed requests report no cost and are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from loadgen.client.records import Cost, Record

Span = tuple[float, float]  # ms from the start of the run
Values = NDArray[np.float64]


def in_phase(records: Sequence[Record], edges_ms: Values) -> dict[str, list[float]]:
    """
    Args:
        edges_ms: (slots + 1,), rising.

    Returns:
        By phase (queue, prefill, transfer, decode), the mean number of requests in it in each slot; empty where the
        server reports no costs.
    """
    spans = [_spans(each) for each in records if each.ok and each.cost is not None]
    names = ("queue", "prefill", "transfer", "decode") if spans else ()
    return {name: _rounded(mean_overlap([each[name] for each in spans], edges_ms)) for name in names}


def busy_workers(records: Sequence[Record], edges_ms: Values) -> dict[str, list[float]]:
    """By phase (prefill, decode), the mean number of workers in each slot that had a request in it. A worker that
    computes prompts and decodes can be in both."""
    told = [each for each in records if each.ok and each.cost is not None]
    ways: dict[str, Callable[[Cost], str]] = {
        "prefill": lambda cost: cost.prefill_worker or cost.decode_worker,
        "decode": lambda cost: cost.decode_worker,
    }
    made = {}
    for name, worker_of in ways.items() if told else ():
        workers: dict[str, list[Span]] = {}
        for each in told:
            assert each.cost is not None
            workers.setdefault(worker_of(each.cost), []).append(_spans(each)[name])
        merged = [span for spans in workers.values() for span in union(spans)]
        made[name] = _rounded(mean_overlap(merged, edges_ms))
    return made


def union(spans: Iterable[Span]) -> list[Span]:
    """The same times, each once."""
    made: list[Span] = []
    for start, end in sorted(spans):
        if made and start <= made[-1][1]:
            made[-1] = (made[-1][0], max(made[-1][1], end))
        else:
            made.append((start, end))
    return made


def mean_overlap(spans: Sequence[Span], edges_ms: Values) -> Values:
    """(slots,): how many spans a slot is in, on average over its length."""
    starts, ends = np.asarray(spans, np.float64).reshape(-1, 2).T
    passed = np.asarray([np.clip(edge - starts, 0.0, ends - starts).sum() for edge in edges_ms])
    mean: Values = np.diff(passed) / np.diff(edges_ms)
    return mean


def _spans(record: Record) -> dict[str, Span]:
    cost = record.cost or Cost()
    first = record.intended_ms + (record.ttft_ms or 0.0)
    last = record.intended_ms + (record.e2e_ms or 0.0)
    computing = max(record.intended_ms, first - cost.prefill_ms)
    there = min(last, first + cost.exposed_ms)
    return {
        "queue": (max(record.intended_ms, computing - cost.queue_ms), computing),
        "prefill": (computing, first),
        "transfer": (first, there),
        "decode": (there, last),
    }


def _rounded(values: Values) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
