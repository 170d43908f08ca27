"""What it costs to choose a pair and to book it: `python -m benchmarks.placement [--workers N] [--seconds S]`.

In process, one thread: the fleet's views, the choice, and the booking, on a fleet of which every worker holds some of
the prompt, with measured links between all pairs that differ, while other requests come and go and workers report. The
look-up in the prefix index, hashing and tokenizing are measured elsewhere. Each figure comes with the time of a fixed
loop of pure Python in the same run, so that machines can be compared. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from benchmarks.index.timing import reference_loop_us
from diptych.messages import LinkStats, Role, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from router.bookings import Booking, Bookings
from router.fleet import Compatibility, Fleet
from router.placement import Learnt, PromptView, place
from router.placement.workers import Roster
from router.worker_link import WorkerLink

BLOCK_SIZE, PROMPT_TOKENS = 16, 2_560
OPEN_REQUESTS = 256  # booked while the next one is placed
PLACEMENTS_PER_REPORT = 8  # placements between two workers' reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64, help="half of them prefill workers")
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    result = select_reserve(args.workers, args.seconds)
    print(f"select + reserve, {args.workers} workers: {result['p50_us']:.0f} us, p99 {result['p99_us']:.0f} us")
    print(json.dumps({"workers": args.workers, **result}))


def select_reserve_64_us(seconds: float = 1.0) -> float:
    """Median microseconds of one choice with its booking among 64 workers."""
    return select_reserve(64, seconds)["p50_us"]


def select_reserve(num_workers: int, seconds: float) -> dict[str, float]:
    """Percentiles over as many placements as fit into `seconds`, in microseconds."""
    turn = _placements(num_workers)
    took_us: list[float] = []
    ends = time.perf_counter() + seconds
    for _ in range(OPEN_REQUESTS):
        turn()
    while time.perf_counter() < ends or len(took_us) < 100:
        took_us.append(turn())
    p50, p99 = np.percentile(took_us, (50, 99)).tolist()
    return {"p50_us": p50, "p99_us": p99, "placements": len(took_us), "reference_loop_us": reference_loop_us()}


class _StillLink(WorkerLink):
    """A link that is up, to nobody."""

    def __init__(self, record: WorkerRecord, stats: WorkerStats) -> None:
        self.record, self.stats, self.connected = record, stats, True


def _placements(num_workers: int) -> Callable[[], float]:
    """A function that makes one placement and says how long it took, in microseconds."""
    random, turn = Random(0), 0
    prefills = [f"prefill-{i}" for i in range(num_workers // 2)]
    decodes = [f"decode-{i}" for i in range(num_workers - len(prefills))]
    fleet = Fleet("router", Compatibility("model", BLOCK_SIZE), 3.0, make_logger("benchmark", stream=io.StringIO()))
    for name in (*prefills, *decodes):
        fleet.adopt(_StillLink(_record(name), _stats(name, decodes, random)))
    workers = (*prefills, *decodes)
    bookings, held = Bookings(), deque[Booking]()
    prompt = PromptView(PROMPT_TOKENS, PROMPT_TOKENS // BLOCK_SIZE, 737_280, growth_blocks=8)
    learnt, roster = Learnt(128.0, 0.1), Roster()

    def once() -> float:
        nonlocal turn
        turn += 1
        if turn % PLACEMENTS_PER_REPORT == 0:
            name = random.choice(workers)
            fleet.link(name).stats = _stats(name, decodes, random)
        matches = {name: 16 * random.randrange(1, 100) for name in workers}
        began = time.perf_counter()
        placement = place(prompt, fleet.views(bookings), "auto", turn, matches=matches, learnt=learnt, roster=roster)
        held.append(bookings.book(placement, PROMPT_TOKENS, prompt.num_blocks))
        took_us = (time.perf_counter() - began) * 1e6
        if len(held) >= OPEN_REQUESTS:
            held.popleft().release()
        if len(held) > 16:
            held[-16].prefilled()
        return took_us

    return once


def _record(name: str) -> WorkerRecord:
    return WorkerRecord(
        worker_id=name,
        role=Role(name.split("-")[0]),
        address="",
        state=WorkerState.READY,
        model="model",
        fingerprint="model",
        block_size=BLOCK_SIZE,
        num_blocks=100_000,
        block_bytes=737_280,
        max_context=1 << 20,
        started_at=0.0,
    )


def _stats(name: str, decodes: list[str], random: Random) -> WorkerStats:
    shared: dict[str, Any] = {"blocks_free": 50_000, "blocks_cached": 50_000, "step_budget": 2_048}
    if name.startswith("decode"):
        return WorkerStats(num_running=random.randrange(1, 64), decode_step_ms=random.uniform(10, 20), **shared)
    links = {decode: LinkStats(random.uniform(20e9, 40e9), random.uniform(0.5, 2.0)) for decode in decodes}
    return WorkerStats(
        prefill_tokens_per_s=random.uniform(9e3, 11e3),
        transfer_bytes_per_s=30e9,
        waiting_prefill_tokens=random.randrange(10_000),
        links=links,
        **shared,
    )


if __name__ == "__main__":
    main()
