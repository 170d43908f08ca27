"""The publisher, one round trip at a time, against Redis in memory."""

from __future__ import annotations

from typing import cast

import pytest
from fake_redis import FakeRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from diptych.engine.interface import CacheEvent
from kv_transfer.event_log import EventLog
from kv_transfer.publisher import IndexPublisher
from kv_transfer.schema import events_key, snapshot_key, wanted_key

HASHES = [bytes([2 * index]) * 16 for index in range(10)]


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def publisher(redis: FakeRedis) -> IndexPublisher:
    return IndexPublisher(cast(Redis, redis), "c", "w", EventLog())


def ids(redis: FakeRedis) -> list[tuple[int, int]]:
    return [at for at, _ in redis.streams.get(events_key("c", "w"), [])]


async def change(publisher: IndexPublisher, *hashes: bytes) -> None:
    publisher.publish(CacheEvent(stored=hashes))
    await publisher.send()


async def test_one_round_trip_a_batch_and_none_without_news(redis: FakeRedis, publisher: IndexPublisher) -> None:
    await publisher.send()
    await change(publisher, HASHES[0])
    assert ids(redis) == [(1, 1), (1, 2)]
    before = redis.round_trips
    await publisher.send()
    assert redis.round_trips == before


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_broken_connection_neither_loses_nor_repeats_a_batch(
    redis: FakeRedis, publisher: IndexPublisher, fault: str
) -> None:
    await publisher.send()
    redis.fault = fault
    with pytest.raises(RedisConnectionError):
        await change(publisher, HASHES[0])
    await publisher.send()
    assert ids(redis) == [(1, 1), (1, 2)]
    assert publisher.epoch == 1


async def test_a_start_whose_answer_was_lost_is_not_a_second_epoch(redis: FakeRedis, publisher: IndexPublisher) -> None:
    redis.fault = "after"
    with pytest.raises(RedisConnectionError):
        await publisher.send()
    await publisher.send()
    assert ids(redis) == [(1, 1)]


async def test_a_read_only_server_keeps_what_waits(redis: FakeRedis, publisher: IndexPublisher) -> None:
    await publisher.send()
    redis.read_only = True
    with pytest.raises(ReadOnlyError):
        await change(publisher, HASHES[0])
    redis.read_only = False
    await publisher.send()
    assert ids(redis) == [(1, 1), (1, 2)]


async def test_whatever_is_missing_in_redis_begins_a_new_epoch(redis: FakeRedis, publisher: IndexPublisher) -> None:
    async def lose_and_notice(epoch: int) -> None:
        publisher._beat_at = 0.0  # a heartbeat is due
        await publisher.send()
        await publisher.send()
        assert publisher.epoch == epoch
        assert ids(redis)[-1] == (epoch, 1)
        assert redis.values[snapshot_key("c", "w")]

    await change(publisher, HASHES[0])
    redis.flushall()
    await lose_and_notice(2)
    del redis.streams[events_key("c", "w")][-1]
    await lose_and_notice(3)
    del redis.values[snapshot_key("c", "w")]
    await lose_and_notice(4)
    redis.values[wanted_key("c", "w")] = b"1"
    await lose_and_notice(5)
    assert wanted_key("c", "w") not in redis.values
    redis.tops[events_key("c", "w")] = (9, 1)
    redis.streams[events_key("c", "w")].append(((9, 1), {}))  # by a namesake, which must not happen
    await lose_and_notice(10)


async def test_a_batch_is_not_appended_to_a_stream_that_is_gone(redis: FakeRedis, publisher: IndexPublisher) -> None:
    await change(publisher, HASHES[0])
    redis.flushall()
    await change(publisher, HASHES[1])
    assert ids(redis) == []
    await publisher.send()
    assert ids(redis) == [(2, 1)]
    assert publisher.num_hashes == 2


async def test_a_new_log_is_wanted_until_it_is_there(redis: FakeRedis, publisher: IndexPublisher) -> None:
    """Else a router that looks again meanwhile would ask once more."""
    await publisher.send()
    redis.values[wanted_key("c", "w")] = b"1"
    publisher._beat_at = 0.0
    await publisher.send()  # sees it
    assert wanted_key("c", "w") in redis.values
    await publisher.send()  # does it
    assert wanted_key("c", "w") not in redis.values
    assert publisher.epoch == 2
    publisher._beat_at = 0.0
    await publisher.send()
    assert publisher.epoch == 2
