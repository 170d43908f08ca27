"""The controller on a real Ray, with stand-ins for our processes: what dies is replaced, what is too much stops, what
leaves is drained, and whoever controls may be killed."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import ray
import redis
from own_ray import use_environment_of_our_own

from deploy.cluster import Cluster
from deploy.cluster_config import ClusterConfig
from deploy.embedded_valkey import EmbeddedValkey
from deploy.leftovers import Footprint
from deploy.progress import Progress
from deploy.ray_runtime import private_ray
from deploy.reconcile import Health, Kind, State
from deploy.status import ClusterError, ClusterStatus, ProcessStatus
from diptych.errors import BadRequest
from diptych.membership import tombstone_key

WAIT_S = 60.0
ENTRY_POINTS = dict.fromkeys(Kind, "standin_process:worker") | {Kind.ROUTER: "standin_process:router"}
CALM = {"drain_timeout_s": 1.0, "suspect_after_s": 100.0, "replace_after_s": 100.0}
NO_PREFILL = {"count": 0}


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def ray_of_our_own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as folder:
        use_environment_of_our_own(patch)
        with private_ray(Path(folder), num_cpus=2):
            yield


@pytest.fixture
def start(valkey: EmbeddedValkey, tmp_path: Path) -> Callable[..., Cluster]:
    def make(
        entry_points: dict[str, str] | None = None, limits: dict[str, float] | None = None, **fields: object
    ) -> Cluster:
        named = {"model": str(tmp_path), "log_folder": str(tmp_path / "logs"), "redis_url": valkey.url}
        described = {**named, "name": tmp_path.name, "limits": CALM | (limits or {}), **fields}
        config = msgspec.convert(described, ClusterConfig)
        return Cluster(config, {str(kind): path for kind, path in (ENTRY_POINTS | (entry_points or {})).items()})

    return make


def until(cluster: Cluster, holds: Callable[[ClusterStatus], object]) -> ClusterStatus:
    deadline = time.monotonic() + WAIT_S
    while not holds(status := cluster.status()):
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


def whole(status: ClusterStatus) -> bool:
    """Everything runs, and the routers know it."""
    return status.complete and all(status.placeable.get(k) == status.wanted[k] for k in (Kind.PREFILL, Kind.DECODE))


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pids(status: ClusterStatus) -> dict[str, int]:
    return {process.id: process.pid for process in status.processes}


def only(status: ClusterStatus, kind: Kind) -> ProcessStatus:
    (process,) = status.of(kind)
    return process


def test_what_is_killed_is_replaced_by_a_new_incarnation(start: Callable[..., Cluster], valkey: EmbeddedValkey) -> None:
    with start(name="kill") as cluster:
        first = only(until(cluster, whole), Kind.DECODE)
        assert "OMP 1" in Path(first.log_path).read_text()

        os.kill(first.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        status = until(cluster, lambda status: status.crashes)
        assert time.monotonic() - killed_at < 3.0
        (crash,) = status.crashes
        assert (crash.kind, crash.worker_id, crash.pid) == (Kind.DECODE, first.name, first.pid)

        status = until(cluster, whole)
        second = only(status, Kind.DECODE)
        assert second.pid != first.pid
        with redis.Redis.from_url(valkey.url) as client:
            assert client.exists(tombstone_key("kill", first.name))
            assert not client.exists(tombstone_key("kill", second.name))
    assert not any(map(is_alive, pids(status).values()))


@pytest.mark.slow
def test_pools_grow_and_shrink(start: Callable[..., Cluster]) -> None:
    with start(prefill=NO_PREFILL) as cluster:
        until(cluster, whole)
        cluster.scale({Kind.PREFILL: 2})
        older, newer = until(cluster, whole).of(Kind.PREFILL)
        cluster.scale({Kind.PREFILL: 1})
        status = until(cluster, whole)
        assert only(status, Kind.PREFILL).pid == older.pid
        assert not is_alive(newer.pid)
        assert status.crashes == []
        with pytest.raises(BadRequest, match="decode is 0"):
            cluster.scale({Kind.DECODE: 0})


def test_a_drained_worker_serves_until_another_takes_its_place(start: Callable[..., Cluster]) -> None:
    with start(prefill=NO_PREFILL) as cluster:
        first = only(until(cluster, whole), Kind.DECODE)
        cluster.drain(first.name)
        placeable, alone = set(), set()

        def replaced(status: ClusterStatus) -> bool:
            here = {process.id: str(process.state) for process in status.of(Kind.DECODE)}
            placeable.add(status.placeable.get(Kind.DECODE, 1))  # missing: not known
            alone.update(here.values() if len(here) == 1 else ())
            return whole(status) and first.id not in here

        second = only(until(cluster, replaced), Kind.DECODE)
        assert second.pid != first.pid
        # The old one is not told to stop before the routers place on the new one.
        assert min(placeable) == 1
        assert alone == {"running"}
        with pytest.raises(BadRequest, match="no worker"):
            cluster.drain(first.name)
        with pytest.raises(BadRequest, match="would have 0 decode"):
            cluster.drain(second.name, replace=False)
        with pytest.raises(BadRequest, match="a router is in no pool"):
            cluster.drain(only(cluster.status(), Kind.ROUTER).name)


@pytest.mark.slow
def test_a_worker_that_asks_to_be_replaced_is_no_crash(start: Callable[..., Cluster], tmp_path: Path) -> None:
    with start({Kind.DECODE: "standin_process:retiring_once"}, prefill=NO_PREFILL) as cluster:
        status = until(cluster, lambda status: (tmp_path / "retired").exists() and whole(status))
        assert status.crashes == []
        assert only(status, Kind.DECODE).id != "decode-1"


@pytest.mark.slow
def test_a_worker_changes_its_role(start: Callable[..., Cluster]) -> None:
    with start(prefill={"count": 2}) as cluster:
        chosen = until(cluster, whole).of(Kind.PREFILL)[0]
        cluster.change_role(chosen.name, Kind.DECODE)
        status = until(cluster, lambda status: whole(status) and status.find(chosen.id) is None)
        assert status.wanted == {Kind.PREFILL: 1, Kind.DECODE: 2, Kind.ROUTER: 1}
        assert status.crashes == []
        assert not is_alive(chosen.pid)


def test_a_killed_controller_comes_back_and_touches_nothing(start: Callable[..., Cluster]) -> None:
    with start(prefill={"count": 1, "num_cpus": 0.5}) as cluster:
        before = until(cluster, whole)
        cluster.scale({Kind.DECODE: 2})
        os.kill(before.controller_pid, signal.SIGKILL)
        after = until(cluster, lambda status: status.controller_pid != before.controller_pid and whole(status))
        assert after.wanted[Kind.DECODE] == 2
        assert pids(before).items() <= pids(after).items()
        # It is in charge of them as its predecessor was: it sees a death, and ends them when told to.
        os.kill(only(after, Kind.PREFILL).pid, signal.SIGKILL)
        status = until(cluster, lambda status: status.crashes and whole(status))
    assert not any(map(is_alive, pids(status).values()))


def test_a_worker_that_makes_no_step_is_replaced(start: Callable[..., Cluster], tmp_path: Path) -> None:
    (tmp_path / "stats.json").write_text('{"num_running": 1, "steps_total": 7}')
    limits = {"suspect_after_s": 1.0, "replace_after_s": 2.0}
    with start(limits=limits, prefill=NO_PREFILL) as cluster:
        until(cluster, lambda status: [p for p in status.of(Kind.DECODE) if p.health is Health.SUSPECT])
        status = until(cluster, lambda status: status.crashes)
        assert "no progress" in status.crashes[0].reason
        (tmp_path / "stats.json").unlink()
        assert only(until(cluster, whole), Kind.DECODE).pid != status.crashes[0].pid


def test_a_stopped_worker_is_killed_and_replaced(start: Callable[..., Cluster], valkey: EmbeddedValkey) -> None:
    limits = {"suspect_after_s": 1.0, "replace_after_s": 2.0}
    with start(name="stop", limits=limits, prefill=NO_PREFILL, options={"lease_ms": 1_000}) as cluster:
        first = only(until(cluster, whole), Kind.DECODE)
        os.kill(first.pid, signal.SIGSTOP)
        status = until(cluster, lambda status: status.crashes)
        assert status.crashes[0].worker_id == first.name
        assert not is_alive(first.pid)
        until(cluster, whole)
        with redis.Redis.from_url(valkey.url) as client:
            assert client.exists(tombstone_key("stop", first.name))


@pytest.mark.slow
def test_a_process_that_raises_is_replaced_too(start: Callable[..., Cluster]) -> None:
    with start({Kind.DECODE: "standin_process:crashing_once"}, prefill=NO_PREFILL) as cluster:
        status = until(cluster, lambda status: status.crashes and status.complete)
        (crash,) = status.crashes
        assert "the engine crashed" in crash.reason
        assert "the engine crashed" in Path(crash.log_path).read_text()
        assert not is_alive(crash.pid)


@pytest.mark.slow
def test_a_process_that_never_starts_says_why_and_is_not_tried_in_haste(start: Callable[..., Cluster]) -> None:
    with start({Kind.DECODE: "standin_process:crashing"}, prefill=NO_PREFILL) as cluster:
        status = until(cluster, lambda status: len(status.crashes) == 2)
        assert "the model folder is empty" in status.crashes[0].reason
        assert not status.complete
        with pytest.raises(ClusterError, match="the model folder is empty"):
            cluster.wait_until_ready(WAIT_S, Progress())
        assert all(process.state is State.DEAD for process in status.of(Kind.DECODE))  # held back


@pytest.mark.slow
def test_what_does_not_listen_is_killed(start: Callable[..., Cluster]) -> None:
    with start({Kind.DECODE: "standin_process:deaf"}, prefill=NO_PREFILL) as cluster:
        deaf = only(until(cluster, lambda status: status.complete), Kind.DECODE)
    assert not is_alive(deaf.pid)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["worker", "deaf"])
def test_processes_nobody_asks_after_end_by_themselves(
    start: Callable[..., Cluster], tmp_path: Path, what: str
) -> None:
    footprint = Footprint(ignored=tmp_path)
    limits = {"orphan_timeout_s": 3.0}
    cluster = start({Kind.DECODE: f"standin_process:{what}"}, prefill=NO_PREFILL, limits=limits).__enter__()
    status = until(cluster, lambda status: all(p.state is State.RUNNING for p in status.processes) and status.processes)
    footprint.add(psutil.Process(pid) for pid in pids(status).values())
    ray.kill(cluster.actor)  # for good, as when the command that started it is killed
    psutil.wait_procs(footprint.processes.values(), timeout=WAIT_S)
    assert footprint.remaining() == []
