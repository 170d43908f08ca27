"""A Ray node is told to go, as Kubernetes tells a pod: by SIGTERM to `ray start --block`. No client notices."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ray_start import RayStart, ray_start
from reference import Reference, random_prompt
from steady_load import Question, SteadyLoad
from up_process import UpProcess, free_port
from waiting import look_until

from deploy.reconcile import Kind
from deploy.status import ClusterStatus
from deploy.wanted import POOLS

pytestmark = pytest.mark.slow

WAIT_S = 180.0
GRACE_S = 120.0  # that Ray gives a node which was told to go
REQUESTS = 20
DESCRIPTION = """
model = "{model}"
served_model = "tiny"
redis_url = "{redis_url}"
name = "{name}"
surge = {surge}
allow_insecure_network = true
[prefill]
count = 2
resources = {{ prefill_slot = 1 }}
[prefill.options]
kv_cache_bytes = 8388608
transports = ["tcp", "self"]
[decode]
count = 2
resources = {{ decode_slot = 1 }}
[decode.options]
kv_cache_bytes = 8388608
transports = ["tcp", "self"]
[router]
http_port = {port}
[router.options]
remote_prefill = "always"
[limits]
drain_timeout_s = 10
start_timeout_s = 180
orphan_timeout_s = 10
"""
SLOTS = '--resources={"prefill_slot": 2, "decode_slot": 2}'  # either node has room for everybody


def until(up: UpProcess, holds: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    with up.admin() as admin:
        return look_until(admin.status, holds, WAIT_S)


def nodes_of(status: ClusterStatus, kind: Kind) -> list[str]:
    return sorted(process.hosting.node_id for process in status.of(kind) if process.hosting)


@pytest.mark.parametrize("surge", ["true", "false"], ids=["successors first", "without room for both"])
async def test_workers_of_a_node_that_is_told_to_go_are_drained_and_replaced_elsewhere(
    surge: str,
    model: Path,
    valkey_url: str,
    tmp_path: Path,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ((100, 60), (300, 20), (24, 300))
    questions = [
        Question(prompt := random_prompt(length, seed), reference.tokens(prompt, count))
        for seed, (length, count) in enumerate(asked)
    ]
    port = free_port()
    described = tmp_path / "cluster.toml"
    fields = {"model": model, "redis_url": valkey_url, "name": tmp_path.name, "port": port, "surge": surge}
    described.write_text(DESCRIPTION.format(**fields), encoding="utf-8")
    with ray_start(tmp_path, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=str(round(GRACE_S))) as nodes:
        nodes.head("--include-dashboard=false")
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        leaving, staying = await asyncio.to_thread(two_workers, nodes)
        up = UpProcess(tmp_path, "--config", str(described), "--address", nodes.address, "--max-tokens", "8")
        try:
            await up.wait_ready()
            before = until(up, lambda status: status.complete)
            assert all(len(set(nodes_of(before, kind))) == 2 for kind in POOLS)  # one of each on either node
            async with SteadyLoad(f"http://127.0.0.1:{port}", "tiny", questions, num_clients=2, seed=0) as load:
                await load.more(REQUESTS)
                load.during = "a node's leaving"
                told_at_s = time.monotonic()
                leaving.send_signal(signal.SIGTERM)
                await asyncio.to_thread(leaving.wait, GRACE_S)
                took_s = time.monotonic() - told_at_s
                await load.more(REQUESTS)
                after = await asyncio.to_thread(until, up, lambda status: status.complete)
            assert load.seen.errors == []
            assert took_s < GRACE_S / 2, nodes.log(leaving)  # it ended because nothing ran there any more
            (left,) = {node for kind in POOLS for node in nodes_of(after, kind)}
            assert left in {node for kind in POOLS for node in nodes_of(before, kind)}
            assert after.crashes == []
            assert staying.poll() is None
        finally:
            with up.admin() as admin:
                await asyncio.to_thread(admin.down)
            assert up.end() == 0


def two_workers(nodes: RayStart) -> list[psutil.Popen]:
    """Two nodes beside the head, when they are there."""
    started = []
    for _ in range(2):
        started.append(nodes.worker(SLOTS, "--num-cpus=4"))
        nodes.wait_started(started[-1])
    return started
