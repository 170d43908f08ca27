"""The reader, one turn at a time, against Redis in memory."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fake_redis import FakeRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from diptych.engine.interface import CacheEvent
from kv_transfer.event_log import EventLog
from kv_transfer.publisher import IndexPublisher
from kv_transfer.schema import EVENTS_FIELD, events_key, snapshot_key
from router.index_reader import SNAPSHOTS_PER_READ, Batches, IndexReader
from router.prefix_index import PrefixIndex

HASHES = [bytes([2 * index]) * 16 for index in range(1, 10)]


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


async def write(redis: FakeRedis, worker_id: str, *hashes: bytes) -> IndexPublisher:
    publisher = IndexPublisher(cast(Redis, redis), "c", worker_id, EventLog(snapshot_every=3))
    publisher.publish(CacheEvent(stored=hashes))
    await publisher.send()
    return publisher


def reader_of(redis: FakeRedis, *worker_ids: str, now: float = 0.0, lags: list[float] | None = None) -> IndexReader:
    observe = (lambda lag_s: None) if lags is None else lags.append
    reader = IndexReader(cast(Redis, redis), "c", PrefixIndex(), observe, clock=lambda: now)
    reader.set_workers(worker_ids)
    return reader


async def test_the_first_turn_makes_it_warm(redis: FakeRedis) -> None:
    worker_ids = [f"w{number}" for number in range(2 * SNAPSHOTS_PER_READ + 1)]
    for worker_id in worker_ids:
        await write(redis, worker_id, *HASHES[:3])
    reader = reader_of(redis, *worker_ids)
    assert not await reader.caught_up(0.0)
    before = redis.round_trips
    await reader.turn(block_ms=0)
    assert redis.round_trips == before + 4  # three groups of snapshots and one read of all streams
    assert await reader.caught_up(0.0)
    assert reader.index.matches(HASHES, 0.0) == dict.fromkeys(worker_ids, 3)
    assert reader.degraded == ""


async def test_without_workers_there_is_nothing_to_wait_for(redis: FakeRedis) -> None:
    reader = reader_of(redis)
    assert await reader.caught_up(0.0)
    await reader.turn(block_ms=0)
    assert redis.round_trips == 0


async def test_one_worker_without_a_snapshot_does_not_hold_up_the_others(redis: FakeRedis) -> None:
    await write(redis, "w1", *HASHES[:2])
    reader = reader_of(redis, "w1", "w2")
    await reader.turn(block_ms=0)
    assert reader.index.matches(HASHES, 0.0) == {"w1": 2}
    assert reader.degraded == "behind on w2"
    assert not await reader.caught_up(0.0)


async def test_the_lag_is_the_age_of_a_batchs_first_event(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = await write(redis, "w1")
    times = iter([100.0, 103.0])
    monkeypatch.setattr("kv_transfer.publisher.time.time", lambda: next(times))
    publisher.publish(CacheEvent(stored=(HASHES[0],)))
    publisher.publish(CacheEvent(stored=(HASHES[1],)))
    await publisher.send()
    lags: list[float] = []
    reader = reader_of(redis, "w1", now=105.0, lags=lags)
    await reader.turn(block_ms=0)
    assert lags == [5.0]
    assert reader.lag_s == 5.0


async def test_an_unreadable_snapshot_is_asked_for_again(redis: FakeRedis) -> None:
    publisher = await write(redis, "w1", *HASHES[:2])
    redis.values[snapshot_key("c", "w1")] = b"\xc1"
    reader = reader_of(redis, "w1")
    for _ in range(3):
        await reader.turn(block_ms=0)
    assert reader.wanted_total == 1  # once, not in every turn
    publisher._beat_at = 0.0
    await publisher.send()
    await publisher.send()
    await reader.turn(block_ms=0)
    assert reader.index.matches(HASHES, 0.0) == {"w1": 2}


async def test_a_failed_turn_changes_nothing(redis: FakeRedis) -> None:
    await write(redis, "w1", *HASHES[:2])
    reader = reader_of(redis, "w1")
    await reader.turn(block_ms=0)
    redis.fault = "after"
    with pytest.raises(RedisConnectionError):
        await reader.turn(block_ms=0)
    assert reader.index.matches(HASHES, 0.0) == {"w1": 2}
    await reader.turn(block_ms=0)
    assert reader.resyncs_total == 1


async def test_a_worker_that_leaves_is_gone_at_once(redis: FakeRedis) -> None:
    await write(redis, "w1", *HASHES[:2])
    reader = reader_of(redis, "w1")
    await reader.turn(block_ms=0)
    reader.set_workers([])
    assert reader.index.matches(HASHES, 0.0) == {}
    reader.set_workers(["w1"])
    assert reader.index.matches(HASHES, 0.0) == {}
    await reader.turn(block_ms=0)
    assert reader.index.matches(HASHES, 0.0) == {"w1": 2}


async def test_an_entry_that_holds_no_events_costs_a_snapshot_and_not_the_router(redis: FakeRedis) -> None:
    await write(redis, "w1", *HASHES[:2])
    reader = reader_of(redis, "w1")
    await reader.turn(block_ms=0)
    redis.streams[events_key("c", "w1")].append(((9, 9), {b"other": b"noise"}))
    await reader.turn(block_ms=0)
    assert (reader.batches[Batches.UNREADABLE], reader.gaps_total) == (1, 1)
    assert reader.index.matches(HASHES, 0.0) == {"w1": 2}


async def test_noise_of_a_worker_that_left_while_it_was_read_is_nothing(
    redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(redis, "w1", *HASHES[:2])
    reader = reader_of(redis, "w1")
    await reader.turn(block_ms=0)
    redis.streams[events_key("c", "w1")].append(((9, 9), {EVENTS_FIELD: b"\xc1"}))
    read = redis.xread

    async def leave_meanwhile(*args: Any, **options: Any) -> Any:
        reader.set_workers([])
        return await read(*args, **options)

    monkeypatch.setattr(redis, "xread", leave_meanwhile)
    await reader.turn(block_ms=0)
    assert reader.batches[Batches.UNKNOWN] == 1
    await reader.turn(block_ms=0)
    assert reader.degraded == ""
