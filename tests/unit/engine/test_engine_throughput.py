"""What the book-keeping costs. The bounds are ten times looser than what one slow core measures: they catch blowups."""

from __future__ import annotations

import time

from diptych.engine.block_pool import BlockPool
from diptych.engine.interface import Drawn, EngineRequest, Kind, Plan
from diptych.engine.limits import Limits
from diptych.engine.scheduler import Scheduler
from diptych.messages import SamplingParams


def test_block_pool_allocates_and_frees_fast() -> None:
    pool = BlockPool(4_096)
    num_pairs = 50_000
    began = time.perf_counter()
    for _ in range(num_pairs):
        blocks = pool.allocate(1)
        assert blocks is not None
        pool.release(blocks)
    per_s = 2 * num_pairs / (time.perf_counter() - began)
    print(f"block pool: {per_s:,.0f} single-block operations/s")
    assert per_s > 100_000


def test_a_decode_step_of_a_full_batch_costs_little() -> None:
    scheduler = Scheduler(Limits(512, 64, 16, 100_000), num_blocks=4_096)
    for i in range(64):
        prompt = tuple(range(i, i + 100))
        scheduler.add(EngineRequest(str(i), Kind.LOCAL, prompt, SamplingParams(max_tokens=500, seed=0), b"k" * 32))
    while scheduler.stats().waiting_prefill_tokens:
        run_step(scheduler)
    num_steps = 200
    began = time.perf_counter()
    for _ in range(num_steps):
        assert len(run_step(scheduler).rows) == 64
    per_step_us = (time.perf_counter() - began) / num_steps * 1e6
    print(f"scheduler: {per_step_us:,.0f} µs for a decode step of 64 sequences, plan and commit")
    assert per_step_us < 10_000


def run_step(scheduler: Scheduler) -> Plan:
    plan = scheduler.plan()
    assert plan is not None
    scheduler.commit(plan, [[Drawn(draw.choice, 1, None) for draw in row.draws] for row in plan.rows])
    return plan
