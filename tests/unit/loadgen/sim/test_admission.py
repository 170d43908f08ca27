"""The router's queue in virtual time: what it is worth, and that the same run is the same run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sim_cases import requests_with_ids, small_config

from loadgen.sim.cluster import Cluster, simulate
from loadgen.sim.config import SimConfig
from loadgen.sim.metrics import Limits, Summary, summarise
from loadgen.sim.requests import SimRequest
from loadgen.sim.workload import OpenLoop
from router.admission.ask import AdmissionLimits

TTFT_MS, TPOT_MS = 200.0, 50.0
QUEUE = AdmissionLimits(max_queued=1_000, max_in_flight=1_000, max_worker_queue_ms=100.0)


def config(fleet: str = "2P+2D", **changes: Any) -> SimConfig:
    more = {"num_blocks": 600, "batch": 64, "running": 8, "wire_bytes_per_s": 1e7, "hop_ms": 0.5, **changes}
    return small_config(fleet, **more)


def requests(count: int = 300, *, spread_ms: float, seed: int = 0) -> list[SimRequest]:
    rng = random.Random(seed)
    lengths = [(rng.choice((20, 40, 80, 300)), rng.randint(2, 30)) for _ in range(count)]
    return requests_with_ids(lengths, seed=seed, spread_ms=spread_ms, num_roots=20)


def run(config: SimConfig, of: Sequence[SimRequest]) -> tuple[Cluster, Summary]:
    cluster = simulate(config, OpenLoop(of))
    return cluster, summarise(cluster, Limits(TTFT_MS, TPOT_MS))


@pytest.mark.parametrize("fleet", ["2P+2D", "3"])
def test_the_same_run_is_the_same_run_in_bulk_and_step_by_step(fleet: str) -> None:
    limited = config(fleet, admission=QUEUE, ttft_limit_ms=TTFT_MS)
    load = requests(spread_ms=1_500)
    (first, summary), (again, _), (steps, _) = (
        run(each, load) for each in (limited, limited, replace(limited, bulk=False))
    )
    assert 0 < summary.num_failed < len(load)
    assert first.loop.digest == again.loop.digest == steps.loop.digest
    assert first.records == steps.records


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["2P+2D", "3", "1P+3D"])
@pytest.mark.parametrize("spread_ms", [8_000.0, 3_000.0, 1_500.0])
def test_waiting_in_the_router_costs_nothing(fleet: str, spread_ms: float) -> None:
    """At a third of what the fleet can do, near it and beyond; means over seeds."""
    throughput, ttft = [], []
    for seed in range(4):
        load = requests(spread_ms=spread_ms, seed=seed)
        _, at_once = run(config(fleet), load)
        _, queued = run(config(fleet, admission=QUEUE), load)
        assert queued.num_failed == at_once.num_failed == 0
        throughput.append(queued.throughput_tokens_per_s / at_once.throughput_tokens_per_s)
        ttft.append(queued.ttft_ms.mean / at_once.ttft_ms.mean)
    assert sum(throughput) / 4 >= 0.98
    assert sum(ttft) / 4 <= 1.05


def test_a_queue_that_nobody_has_to_wait_in_changes_nothing() -> None:
    load = requests(40, spread_ms=4_000)
    (alone, _), (queued, _) = run(config(), load), run(config(admission=QUEUE), load)
    assert alone.loop.digest == queued.loop.digest


@pytest.mark.parametrize("fleet", ["2P+2D", "3"])
def test_refusing_early_keeps_goodput_in_an_overload(fleet: str) -> None:
    """Refusals are misses; what is left is served in time. The fleet is asked for several times what it can do."""
    load = requests(spread_ms=1_000)
    _, queued = run(config(fleet, admission=QUEUE), load)
    cluster, refusing = run(config(fleet, admission=QUEUE, ttft_limit_ms=TTFT_MS), load)
    assert refusing.num_failed > 0
    assert {record.error for record in cluster.records} == {"", "no_capacity"}
    assert refusing.goodput_rps > 1.5 * queued.goodput_rps
    assert refusing.attainment == pytest.approx(
        sum(Limits(TTFT_MS, TPOT_MS).met_by(each) for each in cluster.records) / len(load)
    )
    served = [record for record in cluster.records if record.finished]
    assert sum(record.ttft_ms <= TTFT_MS for record in served) >= 0.75 * len(served)


def test_high_priority_is_served_as_if_it_were_alone_at_the_expense_of_the_others() -> None:
    load = requests(spread_ms=1_500)
    mixed = [replace(each, priority=5 * (each.number % 10 == 0)) for each in load]
    cluster, _ = run(config(admission=QUEUE), mixed)
    blind, _ = run(config(admission=QUEUE), load)

    def mean_ttft_ms(of: Cluster, high: bool) -> float:
        chosen = [each.ttft_ms for each in of.records if (each.request.number % 10 == 0) == high]
        return sum(chosen) / len(chosen)

    assert mean_ttft_ms(cluster, high=True) < 0.5 * mean_ttft_ms(blind, high=True)
    assert mean_ttft_ms(cluster, high=False) < 1.2 * mean_ttft_ms(blind, high=False)
    assert all(record.finished for record in cluster.records)


def test_a_tenant_that_floods_makes_itself_wait() -> None:
    load = requests(spread_ms=300)
    shared = [replace(each, tenant="small" if each.number % 20 == 0 else "flood") for each in load]
    (cluster, _), (blind, _) = run(config(admission=QUEUE), shared), run(config(admission=QUEUE), load)
    small = [number for number, each in enumerate(shared) if each.tenant == "small"]

    def mean_ms(of: Cluster) -> float:
        return sum(of.records[number].ttft_ms for number in small) / len(small)

    assert mean_ms(cluster) < 0.5 * mean_ms(blind)
