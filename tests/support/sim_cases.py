"""Small simulated clusters and requests for tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from diptych.engine.limits import Limits
from diptych.engine.sim.timing import FittedTiming
from loadgen.sim.config import Fleet, SimConfig
from loadgen.sim.policies import min_ttft
from loadgen.sim.requests import SimRequest

BLOCK_SIZE = 4
TIMING = FittedTiming(2.0, 0.1, 0.001, 1.0, 0.05, 0.001)  # any numbers of which no two steps are alike


def small_config(
    fleet: str = "2", *, num_blocks: int = 40, batch: int = 12, running: int = 4, **changes: Any
) -> SimConfig:
    base: dict[str, Any] = {
        "fleet": Fleet.parse(fleet),
        "timing": TIMING,
        "policy": min_ttft(),
        "limits": Limits(batch, running, BLOCK_SIZE, 1_000),
        "num_blocks": num_blocks,
        "block_bytes": BLOCK_SIZE * 16,
        "wire_bytes_per_s": 1e5,
        "wire_latency_ms": 0.2,
        "report_interval_ms": 20.0,
    }
    return SimConfig(**{**base, **changes})


def requests_with_ids(
    lengths: Sequence[tuple[int, int]], *, seed: int = 0, spread_ms: float = 50.0, num_roots: int = 2
) -> list[SimRequest]:
    """(prompt, completion) tokens each; prompts begin with the blocks of one of a few roots."""
    rng = random.Random(seed)
    times = sorted(round(rng.uniform(0, spread_ms) * 1e6) for _ in lengths)
    requests = []
    for number, ((inputs, outputs), time_ns) in enumerate(zip(lengths, times, strict=True)):
        root, count = rng.randrange(num_roots), inputs // BLOCK_SIZE
        shared = rng.randint(0, count)
        ids = [1_000 * root + i for i in range(shared)] + [100_000 + 1_000 * number + i for i in range(count - shared)]
        requests.append(SimRequest(number, time_ns, inputs, outputs, tuple(ids), BLOCK_SIZE))
    return requests


def requests_with_tokens(
    lengths: Sequence[tuple[int, int]], *, seed: int = 0, spread_ms: float = 50.0
) -> list[SimRequest]:
    """The same with real prompts, many of which share a beginning."""
    rng = random.Random(seed)
    root = [rng.randrange(1_000) for _ in range(max(inputs for inputs, _ in lengths))]
    times = sorted(round(rng.uniform(0, spread_ms) * 1e6) for _ in lengths)
    requests = []
    for number, ((inputs, outputs), time_ns) in enumerate(zip(lengths, times, strict=True)):
        shared = rng.randint(0, inputs)
        prompt = root[:shared] + [rng.randrange(1_000) for _ in range(inputs - shared)]
        requests.append(SimRequest(number, time_ns, inputs, outputs, prompt=tuple(prompt)))
    return requests
