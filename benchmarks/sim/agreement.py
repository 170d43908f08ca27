"""The simulator beside a second implementation of the same written rules (`independent`), on a real trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.sim.independent import replay
from benchmarks.sim.runs import Runs

TRACE, NUM_REQUESTS, NUM_WORKERS = "conversation", 2_500, 8
KV_BLOCKS = 1_320  # of a worker: little enough to evict, and enough that no request waits for memory
PREFILL_MS, DECODE_MS = 180.0, 24.0
MEASURES = {
    "reuse": ("reuse",),
    "ttft_mean_ms": ("ttft_ms", "mean"),
    "ttft_p99_ms": ("ttft_ms", "p99"),
    "itl_mean_ms": ("itl_ms", "mean"),
}


def measure_agreement(traces: Path, runs: Runs) -> dict[str, dict[str, float]]:
    """By measure: what each says, and by how much ours differs, as a share of theirs.

    Raises:
        RuntimeError: the simulator failed.
    """
    theirs = replay(traces / f"{TRACE}_trace.jsonl", NUM_WORKERS, KV_BLOCKS, PREFILL_MS, DECODE_MS, NUM_REQUESTS)
    answer = runs.replay(
        TRACE,
        {
            "fleet": NUM_WORKERS,
            "policy": "round_robin",
            "fixed-timing": f"prefill_ms={PREFILL_MS:g},decode_ms={DECODE_MS:g}",
            "kv-blocks": KV_BLOCKS,
            "limit": NUM_REQUESTS,
        },
    )
    found = {}
    for name, path in MEASURES.items():
        ours: Any = answer
        for key in path:
            ours = ours[key]
        found[name] = {"ours": ours, "independent": theirs[name], "error": ours / theirs[name] - 1}
    return found
