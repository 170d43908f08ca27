"""A second opinion on round-robin with fixed step times: shares no code and no structure with the simulator.

Workers do not influence each other, so each is played on its own, in floating-point milliseconds. A worker's cache is
one LRU of whole blocks; blocks in use are remembered as recently used, not pinned.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from statistics import quantiles
from typing import Any


def replay(
    path: Path, num_workers: int, kv_blocks: int, prefill_ms: float, decode_ms: float, limit: int
) -> dict[str, float]:
    """Reuse (share of prompt tokens), mean and 99th percentile TTFT, and mean inter-token time in ms."""
    lines = [json.loads(line) for line in path.read_text().splitlines()[:limit]]
    totals = {"hit": 0, "prompt": 0, "gaps": 0.0, "num_gaps": 0}
    ttft_ms: list[float] = []
    for worker in range(num_workers):
        # The simulator's first turn is number 1; which worker begins changes nothing but names.
        play(
            [each for turn, each in enumerate(lines, 1) if turn % num_workers == worker],
            kv_blocks,
            prefill_ms,
            decode_ms,
            totals,
            ttft_ms,
        )
    return {
        "reuse": totals["hit"] / totals["prompt"],
        "ttft_mean_ms": sum(ttft_ms) / len(lines),
        "ttft_p99_ms": quantiles(ttft_ms, n=100, method="inclusive")[-1],
        "itl_mean_ms": totals["gaps"] / totals["num_gaps"],
    }


def play(
    queue: list[dict[str, Any]],
    kv_blocks: int,
    prefill_ms: float,
    decode_ms: float,
    totals: dict[str, float],
    ttft_ms: list[float],
) -> None:
    """One worker's life, step by step."""
    cache: OrderedDict[object, None] = OrderedDict()
    running: list[list[Any]] = []  # [time of the last token, tokens to come, arrival, output length]
    clock, head = 0.0, 0
    while head < len(queue) or running:
        if not running:
            clock = max(clock, queue[head]["timestamp"])
        joining = []
        while head < len(queue) and queue[head]["timestamp"] <= clock:
            joining.append(queue[head])
            head += 1
        for each in joining:
            usable = each["hash_ids"][: (each["input_length"] - 1) // 512]
            hits = next((i for i, name in enumerate(usable) if name not in cache), len(usable))
            totals["hit"] += 512 * hits
            totals["prompt"] += each["input_length"]
        clock += prefill_ms if joining else decode_ms
        for sequence in running:
            totals["gaps"] += clock - sequence[0]
            totals["num_gaps"] += 1
            sequence[0], sequence[1] = clock, sequence[1] - 1
        for each in joining:
            ttft_ms.append(clock - each["timestamp"])
            full = each["input_length"] // 512
            produced = (each["input_length"] + each["output_length"] - 1) // 512 - full
            names = [*each["hash_ids"][:full], *((id(each), i) for i in range(produced))]
            for name in reversed(names):  # a parent is younger than its child
                cache[name] = None
                cache.move_to_end(name)
            if each["output_length"] > 1:
                running.append([clock, each["output_length"] - 1])
        while len(cache) > kv_blocks:
            cache.popitem(last=False)
        running = [sequence for sequence in running if sequence[1] > 0]
