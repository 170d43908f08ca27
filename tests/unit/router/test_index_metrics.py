from __future__ import annotations

from typing import cast

from fake_redis import FakeRedis
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from diptych.engine.interface import CacheEvent
from kv_transfer.event_log import EventLog
from kv_transfer.publisher import IndexPublisher
from kv_transfer.schema import EVENTS_FIELD, events_key, index_keys
from router.index_metrics import IndexMetrics
from router.index_reader import IndexReader
from router.prefix_index import PrefixIndex

HASHES = [bytes([2 * index]) * 16 for index in range(1, 10)]


class Followed:
    """One worker's publisher, a reader of its log, and what is scraped of that."""

    def __init__(self) -> None:
        self.redis, self.registry, self.why = FakeRedis(), CollectorRegistry(), ""
        metrics = IndexMetrics(self.registry, "tiny")
        redis = cast(Redis, self.redis)
        self.publisher = IndexPublisher(redis, "c", "w1", EventLog())
        self.reader = IndexReader(redis, "c", PrefixIndex(), metrics.observe_lag, clock=lambda: 4e9)
        metrics.watch(self.reader, {"index": lambda: self.why})
        self.reader.set_workers(["w1"])

    async def store(self, *hashes: bytes) -> None:
        self.publisher.publish(CacheEvent(stored=hashes))
        await self.publisher.send()

    async def turn(self) -> None:
        await self.reader.turn(block_ms=0)

    async def begin_anew(self) -> None:
        self.publisher._beat_at = 0.0  # the heartbeat sees that a router asked for it
        await self.publisher.send()
        await self.publisher.send()

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "tiny", **labels})


async def test_what_is_read_and_what_it_makes_is_counted() -> None:
    followed = Followed()
    await followed.publisher.send()  # the start of its log
    await followed.store(*HASHES[:3])
    await followed.turn()
    assert followed("diptych_index_resyncs_total", reason="joined") == 1
    assert followed("diptych_index_batches_total", result="applied") == 2
    assert followed("diptych_index_blocks") == followed("diptych_index_placements") == 3
    assert followed("diptych_index_workers") == 1
    assert (followed("diptych_index_bytes") or 0) > 0
    assert followed("diptych_index_lag_seconds_count") == 1
    assert (followed("diptych_index_lag_seconds_sum") or 0) > 1e9
    assert (followed("diptych_index_precision"), followed("diptych_index_recall")) == (1, 1)


async def test_a_lost_batch_is_a_gap_and_then_a_new_epoch() -> None:
    followed = Followed()
    await followed.publisher.send()
    await followed.turn()
    for hash_ in HASHES[:3]:
        await followed.store(hash_)
    del followed.redis.streams[events_key("c", "w1")][-2]
    for _ in range(3):
        await followed.turn()
    assert (followed("diptych_index_gaps_total") or 0) >= 1
    assert (followed("diptych_index_batches_total", result="gap") or 0) >= 1
    assert followed("diptych_index_logs_wanted_total") == 1
    await followed.begin_anew()
    await followed.turn()
    assert followed("diptych_index_epochs_total") == 1
    assert (followed("diptych_index_resyncs_total", reason="gap") or 0) >= 1
    assert followed("diptych_index_placements") == 3


async def test_noise_and_another_digest_are_told_apart() -> None:
    followed = Followed()
    await followed.store(*HASHES[:4])
    await followed.store(HASHES[6])
    await followed.turn()
    part = followed.reader.index._workers["w1"]
    part.stored = part.stored.without(part.bank.remove(part.bit, index_keys(HASHES[1:2])))  # memory rots
    await followed.store(HASHES[4])
    await followed.turn()
    assert followed("diptych_index_divergences_total") == 1
    for _ in range(3):
        await followed.turn()
    await followed.begin_anew()
    await followed.turn()
    assert followed("diptych_index_resyncs_total", reason="diverged") == 1
    assert (followed("diptych_index_corrected_blocks_total", kind="missed") or 0) >= 1
    entries = followed.redis.streams[events_key("c", "w1")]
    await followed.store(HASHES[5])
    entries[-1] = (entries[-1][0], {EVENTS_FIELD: b"\xc1"})
    await followed.turn()
    assert followed("diptych_index_batches_total", result="unreadable") == 1


async def test_an_outage_is_a_reason_and_a_state() -> None:
    followed = Followed()
    await followed.store(*HASHES[:2])
    await followed.turn()
    assert followed("diptych_degraded", part="index") == 0
    followed.why = "Redis: gone"
    assert followed("diptych_degraded", part="index") == 1
    followed.reader.failed(ConnectionError("gone"))
    assert "gone" in followed.reader.degraded
    await followed.publisher.send()
    followed.publisher._log.fence()
    await followed.store(HASHES[3])
    await followed.turn()
    assert followed("diptych_index_resyncs_total", reason="outage") == 1
