"""The controller on a real Ray, with stand-ins for our processes: what dies is replaced, what is too much stops."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import ray
import redis
from ray._raylet import Config

from deploy.cluster import Cluster, ClusterError
from deploy.cluster_config import ClusterConfig
from deploy.controller import ClusterStatus, ProcessStatus
from deploy.embedded_valkey import EmbeddedValkey
from deploy.leftovers import Footprint
from deploy.progress import Progress
from deploy.ray_runtime import private_environment, private_ray
from deploy.reconcile import Kind, State
from diptych.membership import tombstone_key

WAIT_S = 20.0
ENTRY_POINTS = dict.fromkeys(Kind, "standin_process:worker") | {Kind.ROUTER: "standin_process:router"}


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def ray_of_our_own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as folder:
        for name, value in private_environment().items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers find the stand-ins there
        Config.initialize("")  # Ray read the environment when it was imported, which may have been before this
        with private_ray(Path(folder), num_cpus=0):
            yield


@pytest.fixture
def start(valkey: EmbeddedValkey, tmp_path: Path) -> Callable[..., Cluster]:
    def make(entry_points: dict[str, str] | None = None, **fields: object) -> Cluster:
        named = {"model": str(tmp_path), "log_folder": str(tmp_path / "logs"), "redis_url": valkey.url}
        config = msgspec.convert({**named, "drain_timeout_s": 1.0, **fields}, ClusterConfig)
        return Cluster(config, {str(kind): path for kind, path in (ENTRY_POINTS | (entry_points or {})).items()})

    return make


def until(cluster: Cluster, holds: Callable[[ClusterStatus], object]) -> ClusterStatus:
    deadline = time.monotonic() + WAIT_S
    while not holds(status := cluster.status()):
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def of(status: ClusterStatus, kind: Kind) -> list[ProcessStatus]:
    return [process for process in status.processes if process.kind is kind]


def test_what_is_killed_is_replaced_by_a_new_incarnation(start: Callable[..., Cluster], valkey: EmbeddedValkey) -> None:
    with start(cluster="kill") as cluster:
        first = of(until(cluster, lambda status: status.complete), Kind.DECODE)[0]
        worker_id = msgspec.json.decode(first.record)["worker_id"]
        assert "OMP 1" in Path(first.log_path).read_text()

        os.kill(first.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        status = until(cluster, lambda status: status.crashes)
        assert time.monotonic() - killed_at < 1.0
        (crash,) = status.crashes
        assert (crash.kind, crash.worker_id, crash.pid) == (Kind.DECODE, worker_id, first.pid)

        status = until(cluster, lambda status: status.complete)
        (second,) = of(status, Kind.DECODE)
        assert second.pid != first.pid
        with redis.Redis.from_url(valkey.url) as client:
            assert client.exists(tombstone_key("kill", worker_id))
            assert not client.exists(tombstone_key("kill", msgspec.json.decode(second.record)["worker_id"]))
        pids = [process.pid for process in status.processes]
    assert not any(map(is_alive, pids))


def test_pools_grow_and_shrink(start: Callable[..., Cluster]) -> None:
    with start(prefill=0) as cluster:
        until(cluster, lambda status: status.complete)
        cluster.scale(Kind.PREFILL, 2)
        status = until(cluster, lambda status: status.complete and len(of(status, Kind.PREFILL)) == 2)
        older, newer = of(status, Kind.PREFILL)
        cluster.scale(Kind.PREFILL, 1)
        status = until(cluster, lambda status: len(of(status, Kind.PREFILL)) == 1)
        assert of(status, Kind.PREFILL)[0].pid == older.pid
        assert not is_alive(newer.pid)
        assert status.crashes == []


def test_a_process_that_raises_is_replaced_too(start: Callable[..., Cluster]) -> None:
    with start({Kind.DECODE: "standin_process:crashing_once"}, prefill=0) as cluster:
        status = until(cluster, lambda status: status.crashes and status.complete)
        (crash,) = status.crashes
        assert "the engine crashed" in crash.reason
        assert "the engine crashed" in Path(crash.log_path).read_text()
        assert not is_alive(crash.pid)


def test_a_process_that_never_starts_says_why_and_is_not_tried_in_haste(start: Callable[..., Cluster]) -> None:
    with start({Kind.DECODE: "standin_process:crashing"}, prefill=0) as cluster:
        status = until(cluster, lambda status: len(status.crashes) == 2)
        assert "the model folder is empty" in status.crashes[0].reason
        assert not status.complete
        with pytest.raises(ClusterError, match="the model folder is empty"):
            cluster.wait_until_ready(WAIT_S, Progress())
        assert of(status, Kind.DECODE) == [] or of(status, Kind.DECODE)[0].state is State.DEAD  # held back


def test_what_does_not_listen_is_killed(start: Callable[..., Cluster]) -> None:
    with start({Kind.DECODE: "standin_process:deaf"}, prefill=0) as cluster:
        (deaf,) = of(until(cluster, lambda status: status.complete), Kind.DECODE)
    assert not is_alive(deaf.pid)


def test_nothing_outlives_a_killed_controller(start: Callable[..., Cluster], tmp_path: Path) -> None:
    footprint = Footprint(ignored=tmp_path)
    with start(prefill=0) as cluster:
        pids = [process.pid for process in until(cluster, lambda status: status.complete).processes]
        footprint.add(psutil.Process(pid) for pid in pids)
        ray.kill(cluster.actor)
        psutil.wait_procs(footprint.processes.values(), timeout=WAIT_S)
    assert footprint.remaining() == []
