"""Runs of decode steps are only a short cut: everything observable equals the simulation step by step."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_cases import requests_with_ids, small_config

from diptych.engine.block_pool import BlockState
from loadgen.sim.cluster import Cluster, simulate
from loadgen.sim.config import SimConfig
from loadgen.sim.requests import SimRequest
from loadgen.sim.workload import OpenLoop


def observed(cluster: Cluster) -> dict[str, object]:
    return {
        "digest": cluster.loop.digest,
        "records": cluster.records,
        "gaps": [values.tolist() for values in cluster.gaps.sorted_ms()],
        "busy": [worker.busy_ns for worker in cluster.workers],
        "stats": [worker.scheduler.stats() for worker in cluster.workers],
        "states": [
            [worker.scheduler.pool.state(block) for block in range(worker.scheduler.pool.num_blocks)]
            for worker in cluster.workers
        ],
        "hashes": [worker.scheduler.pool._cache.hash_of for worker in cluster.workers],
        "index": len(cluster.front.index),
    }


def run_both(config: SimConfig, requests: list[SimRequest]) -> Cluster:
    quick = simulate(config, OpenLoop(requests))
    slow = simulate(replace(config, bulk=False), OpenLoop(requests))
    assert observed(quick) == observed(slow)
    for worker in quick.workers:
        worker.scheduler.check()
    quick.front.index.check()
    return quick


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 50)), min_size=1, max_size=14),
    fleet=st.sampled_from(["1", "2", "1P+1D", "2P+1D", "1P+2D"]),
    num_blocks=st.integers(28, 60),
    batch=st.integers(3, 40),
    running=st.integers(1, 6),
    hop_ms=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 99),
    spread_ms=st.sampled_from([0.0, 40.0, 400.0]),
)
def test_bulk_equals_step_by_step(
    lengths: list[tuple[int, int]],
    fleet: str,
    num_blocks: int,
    batch: int,
    running: int,
    hop_ms: float,
    seed: int,
    spread_ms: float,
) -> None:
    config = small_config(fleet, num_blocks=num_blocks, batch=batch, running=running, hop_ms=hop_ms)
    cluster = run_both(config, requests_with_ids(lengths, seed=seed, spread_ms=spread_ms))
    assert all(record.finished for record in cluster.records)


def test_bulk_equals_step_by_step_where_blocks_run_out() -> None:
    """Long completions in a small pool: preemptions, evictions and a queue that waits for blocks."""
    config = small_config("1", num_blocks=30, running=6)
    cluster = run_both(config, requests_with_ids([(20, 60)] * 8, spread_ms=10.0))
    stats = cluster.workers[0].scheduler.stats()
    assert stats.preemptions_total > 0
    assert stats.evictions_total > 0


def test_bulk_takes_far_fewer_events() -> None:
    requests = requests_with_ids([(20, 200)] * 6, spread_ms=100.0)
    config = small_config("1", num_blocks=600, report_interval_ms=1_000.0, running=8)
    quick, slow = (simulate(replace(config, bulk=bulk), OpenLoop(requests)) for bulk in (True, False))
    assert quick.loop.num_events * 5 < slow.loop.num_events


def test_decode_many_refuses_to_invent_blocks() -> None:
    cluster = Cluster(small_config("1", num_blocks=8), OpenLoop([]))
    scheduler = cluster.workers[0].scheduler
    assert scheduler.quiet_steps() == 0
    assert scheduler.pool.count(BlockState.FREE) == 8
    scheduler.decode_many(3)  # nobody runs: nothing happens
    assert scheduler.stats().generated_tokens_total == 0


@pytest.mark.parametrize("fleet", ["2", "1P+2D"])
def test_same_seed_same_hash_and_another_workload_another(fleet: str) -> None:
    def digest(seed: int) -> str:
        return simulate(small_config(fleet), OpenLoop(requests_with_ids([(30, 9)] * 10, seed=seed))).loop.digest

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)
