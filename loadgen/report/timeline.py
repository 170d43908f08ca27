"""A run over time, in slots: what a single figure hides (a queue that grows, a stall, a slow start)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadgen.client.records import Record
from loadgen.report.occupancy import busy_workers, in_phase
from loadgen.report.summary import Timeline

SLOTS = 60  # at most: as many as a chart shows without being all noise
SLOT_LENGTHS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)


def timeline(records: Sequence[Record]) -> Timeline:
    ends = [each.intended_ms + (each.e2e_ms or 0.0) for each in records]
    length_ms = max(ends, default=0.0)
    slot_s = next((slot for slot in SLOT_LENGTHS_S if length_ms / 1e3 / slot <= SLOTS), length_ms / 1e3 / SLOTS)
    number = int(length_ms // (slot_s * 1e3)) + 1

    def slots(times_ms: list[float], weights: list[float] | None = None) -> list[int]:
        index = (np.asarray(times_ms) // (slot_s * 1e3)).astype(np.int64)
        counts = np.bincount(index, weights, number)
        made: list[int] = np.rint(counts).astype(int).tolist()
        return made

    sent = slots([each.intended_ms for each in records])
    ended = slots(ends)
    tokens = [pair for each in records for pair in each.token_times_ms()]
    ttfts: list[list[float]] = [[] for _ in range(number)]
    for each in records:
        if each.ok and each.ttft_ms is not None:
            ttfts[int(each.intended_ms // (slot_s * 1e3))].append(each.ttft_ms)
    edges_ms = np.arange(number + 1, dtype=np.float64) * (slot_s * 1e3)
    return Timeline(
        slot_s=slot_s,
        sent=sent,
        ended=ended,
        failed=slots([end for end, each in zip(ends, records, strict=True) if not each.ok]),
        in_flight=(np.cumsum(sent) - np.cumsum(ended)).tolist(),
        output_tokens=slots([at for at, _ in tokens], [float(count) for _, count in tokens]),
        ttft_p50_ms=[round(float(np.percentile(slot, 50)), 3) if slot else None for slot in ttfts],
        ttft_p99_ms=[round(float(np.percentile(slot, 99)), 3) if slot else None for slot in ttfts],
        in_phase=in_phase(records, edges_ms),
        busy_workers=busy_workers(records, edges_ms),
    )
