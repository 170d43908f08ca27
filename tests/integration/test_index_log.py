"""Publisher, Redis and reader together: the index equals the union of the workers' truth."""

from __future__ import annotations

import msgspec
from index_parts import Replica, Worker, running, some_hashes, until
from redis.asyncio import Redis

from diptych.membership import connect
from kv_transfer.event_log import EventLog
from kv_transfer.schema import (
    EVENTS_FIELD,
    INDEX_TTL_MS,
    EventBatch,
    IndexEvent,
    events_key,
    index_keys,
    join_hashes,
    snapshot_key,
    wanted_key,
)


async def test_events_reach_every_index(redis: Redis, cluster: str) -> None:
    first, second = Worker(redis, cluster, "w1"), Worker(redis, cluster, "w2")
    routers = [Replica(redis, cluster, first, second) for _ in range(2)]
    a, b, c = some_hashes(3)
    async with running(first, second, *routers):
        first.store(a, b, c)
        second.store(a, b)
        await until(lambda: all(router.matches(a, b, c) == {"w1": 3, "w2": 2} for router in routers))
        first.remove(b, c)
        await until(lambda: all(router.matches(a, b, c) == {"w1": 1, "w2": 2} for router in routers))
        second.clear()
        await until(lambda: all(router.matches(a, b, c) == {"w1": 1} for router in routers))
        for router in routers:
            assert router.reader.degraded == ""
            assert (router.index.accuracy.precision, router.index.accuracy.recall) == (1.0, 1.0)
            assert 0.0 <= router.reader.lag_s < 5.0
            router.index.check()


async def test_a_late_reader_and_a_rejoining_worker_read_snapshot_and_tail(redis: Redis, cluster: str) -> None:
    worker = Worker(redis, cluster, "w1", EventLog(snapshot_every=3))
    hashes = some_hashes(40)
    async with running(worker):
        for hash_ in hashes:
            worker.store(hash_)
            await worker.publisher.flush()
        assert await redis.xlen(events_key(cluster, "w1")) <= 2 * 3 + 1
        late = Replica(redis, cluster, worker)
        assert not await late.reader.caught_up(0.0)
        async with running(late):
            assert await late.reader.caught_up(5.0)
            await until(lambda: late.matches(*hashes) == {"w1": 40})
            assert late.reader.resyncs_total == 1
            assert late.reader.batches.total() <= 3  # the tail only
            late.reader.set_workers([])
            assert late.matches(*hashes) == {}
            late.reader.set_workers(["w1"])
            await until(lambda: late.matches(*hashes) == {"w1": 40})


async def test_a_worker_that_joins_later_is_read_too(redis: Redis, cluster: str) -> None:
    first, second = Worker(redis, cluster, "w1"), Worker(redis, cluster, "w2")
    router = Replica(redis, cluster, first, second)
    hashes = some_hashes(3)
    async with running(first, router):  # the second has not written anything yet
        first.store(*hashes)
        await until(lambda: router.matches(*hashes) == {"w1": 3})
        await until(lambda: router.reader.degraded == "behind on w2")
        second.store(*hashes[:2])
        async with running(second):
            await until(lambda: router.matches(*hashes) == {"w1": 3, "w2": 2})
            await until(lambda: not router.reader.degraded)


async def test_lost_batches_are_a_gap_and_heal_by_a_new_log(redis: Redis, cluster: str) -> None:
    worker = Worker(redis, cluster, "w1")
    router, late = Replica(redis, cluster, worker), Replica(redis, cluster, worker)
    hashes = some_hashes(5)
    async with running(worker):
        for hash_ in hashes[:3]:
            worker.store(hash_)
            await worker.publisher.flush()
        entries = await redis.xrange(events_key(cluster, "w1"))
        await redis.xdel(events_key(cluster, "w1"), entries[1][0])
        async with running(router):  # snapshot and tail meet the hole
            await until(lambda: router.agrees)
            assert router.reader.gaps_total >= 1
            assert router.reader.wanted_total == 1
            assert worker.log.epoch == 2
            assert not await redis.exists(wanted_key(cluster, "w1"))
            await redis.delete(events_key(cluster, "w1"))
            worker.store(*hashes[3:])
            async with running(late):
                await until(lambda: router.agrees and late.agrees)


async def test_silent_divergence_is_found_by_the_next_batch(redis: Redis, cluster: str) -> None:
    worker = Worker(redis, cluster, "w1")
    router = Replica(redis, cluster, worker)
    hashes = some_hashes(6)
    async with running(worker, router):
        worker.store(*hashes[:4])
        await until(lambda: router.agrees)
        part = router.index._workers["w1"]
        part.stored = part.stored.without(part.bank.remove(part.bit, index_keys(hashes[1:2])))
        worker.store(hashes[4])
        await until(lambda: router.agrees)
        assert router.reader.divergences_total == 1
        worker.store(hashes[5])
        await until(lambda: router.agrees and router.index.accuracy.recall == 1.0)


async def test_noise_in_the_log_stops_nobody(redis: Redis, cluster: str) -> None:
    worker, other = Worker(redis, cluster, "w1"), Worker(redis, cluster, "w2")
    router = Replica(redis, cluster, worker, other)
    async with running(worker, other, router):
        worker.store(*some_hashes(2))
        await worker.publisher.flush()
        await until(lambda: router.agrees)
        await redis.xadd(events_key(cluster, "w1"), {EVENTS_FIELD: b"\xc1"}, id="1-900")
        other.store(*some_hashes(2))
        await until(lambda: router.agrees and worker.log.epoch == 2)
        forged = EventBatch(2, 2, [IndexEvent(join_hashes(some_hashes(1)))])
        await redis.xadd(events_key(cluster, "w1"), {EVENTS_FIELD: msgspec.msgpack.encode(forged)}, id="2-2")
        await until(lambda: worker.log.epoch == 3 and router.agrees)


async def test_an_overflowing_queue_becomes_a_snapshot(redis: Redis, cluster: str) -> None:
    worker = Worker(redis, cluster, "w1", EventLog(max_queued=10))
    router = Replica(redis, cluster, worker)
    hashes = some_hashes(100)
    async with running(worker, router):
        await worker.publisher.flush()
        for hash_ in hashes:  # without letting the publisher run
            worker.store(hash_)
        await until(lambda: router.matches(*hashes) == {"w1": 100})
    assert worker.log.overflows_total == 1
    assert worker.log.epoch == 2


async def test_memory_is_bounded_while_redis_is_away() -> None:
    redis = connect("redis://127.0.0.1:1/0")
    worker = Worker(redis, "c", "w1", EventLog(max_queued=10))
    async with running(worker):
        for _ in range(1_000):
            worker.store(*some_hashes(1))
            worker.clear()
        await until(lambda: "Redis" in worker.publisher.degraded)
    assert worker.log.num_queued <= 10
    assert worker.publisher.num_hashes == 0
    await redis.aclose()


async def test_only_keys_of_eight_bytes_and_expiring_entries_are_stored(redis: Redis, cluster: str) -> None:
    worker = Worker(redis, cluster, "w1", EventLog(snapshot_every=2))
    hashes = some_hashes(200)
    async with running(worker):
        for start in range(0, 200, 20):
            worker.store(*hashes[start : start + 20])
            await worker.publisher.flush()
    size = 0
    for key in (events_key(cluster, "w1"), snapshot_key(cluster, "w1")):
        assert 0 < await redis.pttl(key) <= INDEX_TTL_MS
        dump = await redis.dump(key)
        assert all(hash_[:16] not in dump for hash_ in hashes)
        size += await redis.memory_usage(key, samples=0)
    assert size < 24 * 200 + 10_000
