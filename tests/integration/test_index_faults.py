"""Redis absent, slow, flushed, restarted, full and read-only: matching goes on, and all agree soon after it heals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from index_parts import Replica, Worker, running, some_hashes, until
from redis.asyncio import Redis
from redis_server import RedisServer

from diptych.membership import connect

HEALED_S = 5.0
MATCH_S = 0.005  # the request path never waits for Redis
HASHES = some_hashes(6)


@dataclass
class Setting:
    """Two workers and two routers, each with a connection of its own, that agree on the first four blocks."""

    server: RedisServer
    admin: Redis
    workers: list[Worker]
    routers: list[Replica]

    def serves_its_last_view(self) -> None:
        for router in self.routers:
            began = time.perf_counter()
            assert router.matches(*HASHES[:4]) == {"w0": 4, "w1": 4}
            assert time.perf_counter() - began < MATCH_S

    async def noticed(self) -> None:
        await until(lambda: all("Redis" in worker.publisher.degraded for worker in self.workers))

    async def healed(self) -> None:
        """All agree again, on what happened during the fault and after it."""
        began = time.monotonic()
        await until(lambda: all(router.agrees for router in self.routers), HEALED_S)
        for worker in self.workers:
            worker.store(*HASHES[4:])
        left = HEALED_S - (time.monotonic() - began)
        await until(lambda: all(router.matches(*HASHES) == {"w0": 6, "w1": 6} for router in self.routers), left)
        await until(lambda: not any(part.degraded for part in self.parts()), left)

    def parts(self) -> list[object]:
        return [*(worker.publisher for worker in self.workers), *(router.reader for router in self.routers)]


@pytest.fixture
async def setting(own_valkey: RedisServer) -> AsyncIterator[Setting]:
    clients = [connect(own_valkey.url) for _ in range(5)]
    workers = [Worker(clients[number], "c", f"w{number}") for number in (0, 1)]
    routers = [Replica(clients[2 + number], "c", *workers) for number in (0, 1)]
    async with running(*workers, *routers):
        for worker in workers:
            worker.store(*HASHES[:4])
        await until(lambda: all(router.agrees for router in routers))
        yield Setting(own_valkey, clients[4], workers, routers)
    for client in clients:
        await client.aclose()


def more(setting: Setting) -> None:
    """Something happens while Redis cannot be told."""
    for worker in setting.workers:
        worker.store(HASHES[4])


async def test_absent_and_back_empty(setting: Setting) -> None:
    await asyncio.to_thread(setting.server.stop)
    more(setting)
    await setting.noticed()
    await until(lambda: all("Redis" in router.reader.degraded for router in setting.routers))
    setting.serves_its_last_view()
    await asyncio.to_thread(setting.server.start)
    await setting.healed()
    assert [worker.log.epoch for worker in setting.workers] == [2, 2]


async def test_absent_from_the_start(own_valkey: RedisServer) -> None:
    own_valkey.stop()
    redis = connect(own_valkey.url)
    worker = Worker(redis, "c", "w0")
    router = Replica(redis, "c", worker)
    async with running(worker, router):
        worker.store(*HASHES)
        await until(lambda: "Redis" in worker.publisher.degraded and "Redis" in router.reader.degraded)
        assert router.matches(*HASHES) == {}
        await asyncio.to_thread(own_valkey.start)
        await until(lambda: router.agrees, HEALED_S)
    await redis.aclose()


@pytest.mark.parametrize("mode", ["WRITE", "ALL"])
@pytest.mark.parametrize(
    "pause_ms", [400, pytest.param(3_500, marks=pytest.mark.slow)]
)  # within and beyond the time-out of a command
async def test_paused(setting: Setting, mode: str, pause_ms: int) -> None:
    began = time.monotonic()
    await setting.admin.execute_command("CLIENT", "PAUSE", pause_ms, mode)
    more(setting)
    while time.monotonic() < began + pause_ms / 1e3:  # the event loop and the matching go on
        setting.serves_its_last_view()
        await asyncio.sleep(0.01)
    await setting.healed()


async def test_flushed(setting: Setting) -> None:
    await setting.admin.flushall()
    setting.serves_its_last_view()
    await setting.healed()  # an idle worker notices by its heartbeat
    late = Replica(setting.admin, "c", *setting.workers)
    async with running(late):
        assert await late.reader.caught_up(HEALED_S)
        await until(lambda: late.agrees)


async def test_full(setting: Setting) -> None:
    await setting.admin.config_set("maxmemory", 1)
    more(setting)
    await setting.noticed()
    assert "OutOfMemory" in setting.workers[0].publisher.degraded
    setting.serves_its_last_view()
    await setting.admin.config_set("maxmemory", 0)
    await setting.healed()
    assert [worker.log.epoch for worker in setting.workers] == [1, 1]  # nothing was lost, so nothing is repeated


async def test_read_only_as_after_a_failover(setting: Setting) -> None:
    await setting.admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    more(setting)
    await setting.noticed()
    assert "ReadOnly" in setting.workers[0].publisher.degraded
    setting.serves_its_last_view()
    await setting.admin.execute_command("REPLICAOF", "NO", "ONE")
    await setting.healed()


async def test_failed_over_to_a_replica_that_lags(setting: Setting) -> None:
    """The same address leads to another server, which has everything as it was a while ago."""
    copies = {key: await setting.admin.dump(key) async for key in setting.admin.scan_iter("*")}
    for worker in setting.workers:
        worker.store(HASHES[4])
        await worker.publisher.flush()
    await until(lambda: all(router.agrees for router in setting.routers))
    async with setting.admin.pipeline(transaction=True) as pipe:
        pipe.flushall()
        for key, copy in copies.items():
            pipe.restore(key, 0, copy)
        await pipe.execute()
    setting.serves_its_last_view()
    await setting.healed()
    await until(lambda: all(worker.log.epoch > 1 for worker in setting.workers))  # a log that lost its end ends
    late = Replica(setting.admin, "c", *setting.workers)
    async with running(late):
        await until(lambda: late.agrees, HEALED_S)


async def test_connections_that_are_cut(setting: Setting) -> None:
    for _ in range(5):
        await setting.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        more(setting)
        setting.serves_its_last_view()
    await setting.healed()


async def test_snapshots_evicted(setting: Setting) -> None:
    """As with maxmemory-policy allkeys-lru, which nobody should use for this, and somebody will."""
    await setting.admin.delete(*[f"c:index:{worker.worker_id}:snapshot" for worker in setting.workers])
    late = Replica(setting.admin, "c", *setting.workers)
    async with running(late):
        await until(lambda: late.agrees, HEALED_S)
    await setting.healed()
