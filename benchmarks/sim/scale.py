"""A fleet no one has at home: 1,000 workers, 10 M blocks in the router's index, 100,000 requests.

Every request brings 100 new blocks of 16 tokens behind a prefix shared with a tenth of the others, at a rate that keeps
the workers half busy. Fewer workers make everything smaller in proportion.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator

import numpy as np

from diptych.engine.limits import Limits
from diptych.engine.sim.fits import deployment
from loadgen.sim.cluster import simulate
from loadgen.sim.config import Fleet, SimConfig
from loadgen.sim.event_loop import NS_PER_S
from loadgen.sim.metrics import summarise
from loadgen.sim.policies import min_ttft
from loadgen.sim.requests import SimRequest
from loadgen.sim.workload import OpenLoop

BLOCK_SIZE, NEW_BLOCKS, SHARED_BLOCKS, OUTPUT_TOKENS = 16, 100, 4, 32
REQUESTS_PER_WORKER, REQUESTS_PER_WORKER_S = 100, 10.0
NUM_BLOCKS = 24_000  # of a worker: room for all it will ever be given, so that 10 M stay indexed


def measure_scale(num_workers: int, say: Callable[[str], None]) -> dict[str, float]:
    engine = deployment("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 1)
    config = SimConfig(
        Fleet(0, num_workers),
        engine.timing,
        min_ttft(),
        Limits(8_192, 256, BLOCK_SIZE, 1 << 20),
        NUM_BLOCKS,
        engine.kv_bytes_per_token * BLOCK_SIZE,
        hop_ms=0.5,
    )
    began = time.perf_counter()
    cluster = simulate(config, OpenLoop(_requests(num_workers)))
    wall_s = time.perf_counter() - began
    summary = summarise(cluster)
    say(f"scale: {num_workers} workers, {summary.num_requests} requests: {wall_s:.0f} s")
    return {
        "workers": num_workers,
        "requests": summary.num_requests,
        "failed": summary.num_failed,
        "indexed_blocks": len(cluster.front.index),
        "wall_s": wall_s,
        "virtual_s": summary.duration_s,
        "events": cluster.loop.num_events,
        "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "placement_us_p50": summary.placement_us_p50,
        "placement_us_p99": summary.placement_us_p99,
        "guess_us_p50": float(np.percentile(cluster.front.guess_us, 50)),
        "guess_us_p99": float(np.percentile(cluster.front.guess_us, 99)),
        "ttft_mean_ms": summary.ttft_ms.mean,
        "reuse": summary.reuse,
    }


def _requests(num_workers: int) -> Iterator[SimRequest]:
    random = np.random.default_rng(0)
    total, rate = REQUESTS_PER_WORKER * num_workers, REQUESTS_PER_WORKER_S * num_workers
    now_ns = 0
    for number in range(total):
        now_ns += round(random.exponential(1 / rate) * NS_PER_S)
        root = int(random.integers(10))
        ids = [root * SHARED_BLOCKS + i for i in range(SHARED_BLOCKS)]
        first = 1_000 + number * NEW_BLOCKS
        ids += range(first, first + NEW_BLOCKS)
        yield SimRequest(number, now_ns, len(ids) * BLOCK_SIZE + 7, OUTPUT_TOKENS, tuple(ids), BLOCK_SIZE)
