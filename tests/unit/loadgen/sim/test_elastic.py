"""A fleet that grows and shrinks in virtual time: nothing is lost, workers are paid for, runs repeat themselves."""

from __future__ import annotations

from collections.abc import Mapping

from sim_cases import requests_with_ids, small_config

from diptych.messages import Role
from loadgen.sim.cluster import Cluster
from loadgen.sim.elastic import Change, Elastic, PoolState
from loadgen.sim.workload import OpenLoop

START_S, INTERVAL_S = 0.02, 0.01
REQUESTS = [(30, 12)] * 60


class Script:
    """A scaler that wants what is written for a time."""

    def __init__(self, *lines: tuple[float, int, int]) -> None:
        self.lines = lines  # (from second, prefill, decode)
        self.seen: list[tuple[float, dict[Role, PoolState]]] = []
        self.starts: list[float] = []

    def scale(self, now_s: float, pools: Mapping[Role, PoolState]) -> Mapping[Role, int]:
        self.seen.append((now_s, dict(pools)))
        wanted = [line for line in self.lines if line[0] <= now_s]
        return {Role.PREFILL: wanted[-1][1], Role.DECODE: wanted[-1][2]} if wanted else {}

    def started(self, role: Role, took_s: float) -> None:
        self.starts.append(took_s)


def run(script: Script, seed: int = 0, until_s: float = 0.0) -> tuple[Cluster, Elastic]:
    workload = OpenLoop(requests_with_ids(REQUESTS, seed=seed, spread_ms=300.0))
    cluster = Cluster(small_config("1P+1D"), workload)
    elastic = Elastic(cluster, script, START_S, INTERVAL_S, until_s)
    elastic.begin()
    cluster.run()
    return cluster, elastic


def test_workers_join_after_their_start_and_take_load() -> None:
    script = Script((0.05, 2, 3))
    cluster, elastic = run(script)
    assert len(cluster.workers) == 5
    assert script.starts == [START_S] * 3
    assert all(record.finished for record in cluster.records)
    assert all(worker.busy_ns for worker in cluster.workers)
    assert elastic.changes == [Change(0.05, Role.PREFILL, 1, 2), Change(0.05, Role.DECODE, 1, 3)]
    late = next(pools for now_s, pools in script.seen if now_s > 0.055)
    assert len(late[Role.DECODE].starting_s) == 2
    assert late[Role.DECODE].wanted == 3


def test_a_worker_that_drains_gets_nothing_new_and_loses_nothing() -> None:
    cluster, elastic = run(Script((0.0, 2, 2), (0.15, 1, 1)), until_s=1.0)
    assert all(record.finished for record in cluster.records)
    newest = cluster.workers[-1]
    placed = [record for record in cluster.records if newest.index in (record.prefill_worker, record.decode_worker)]
    assert placed
    assert all(record.request.arrival_ns <= 0.151e9 for record in placed)
    for worker in cluster.workers:
        worker.scheduler.check()
    # Two of them were paid for until they were empty, the others to the end.
    assert 2.0 < sum(elastic.worker_s.values()) < 3.0


def test_what_still_starts_goes_first() -> None:
    cluster, elastic = run(Script((0.05, 1, 3), (0.06, 1, 1)))
    assert len(cluster.workers) == 2  # nobody ever joined
    assert elastic.num_reversals == {Role.PREFILL: 0, Role.DECODE: 1}


def test_the_same_seed_gives_the_same_trace() -> None:
    lines = ((0.0, 2, 2), (0.1, 1, 3), (0.2, 3, 1))
    first, again, other = (run(Script(*lines), seed)[0].loop.digest for seed in (0, 0, 1))
    assert first == again != other


def test_a_fleet_that_is_only_looked_at_is_the_same_as_one_that_is_not() -> None:
    looked_at, _ = run(Script())
    plain = Cluster(small_config("1P+1D"), OpenLoop(requests_with_ids(REQUESTS, spread_ms=300.0)))
    plain.run()
    assert looked_at.loop.digest == plain.loop.digest
