"""Whatever happens between workers, Redis and routers, in the end every router believes what the workers hold.

The real publisher and the real reader run against Redis in memory, step by step, in any order. Between the steps
answers are lost; batches vanish, come twice, change places or turn into noise; streams are trimmed; Redis is flushed,
or replaced by an old copy of itself; workers die, routers restart, and a router's memory rots. After that all run on
without faults for as many rounds as a few seconds have, and must agree.
"""

from __future__ import annotations

import copy
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from fake_redis import FakeRedis, parse
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from redis.asyncio import Redis
from redis.exceptions import RedisError

from diptych.engine.interface import CacheEvent
from kv_transfer.event_log import EventLog
from kv_transfer.publisher import IndexPublisher
from kv_transfer.schema import EVENTS_FIELD, events_key, index_keys, snapshot_key
from router.index_reader import IndexReader
from router.prefix_index import PrefixIndex

HASHES = [bytes([2 * index]) * 16 for index in range(1, 13)]
CLUSTER = "c"
SNAPSHOT_EVERY = 3  # batches
ROUNDS = 12  # of everybody after the last fault; the longest way is: gap, reload, gap, ask, new epoch, reload

workers = st.integers(0, 1)
routers = st.integers(0, 1)
hash_lists = st.lists(st.sampled_from(HASHES), max_size=5)


def now_or_never(work: Coroutine[Any, Any, None]) -> None:
    """Run something that only seems to wait (`asyncio.sleep(0)`)."""
    try:
        while True:
            work.send(None)
    except StopIteration:
        pass


class Worker:
    """A worker's cache, the truth, and its publisher."""

    def __init__(self, redis: FakeRedis, worker_id: str) -> None:
        self.worker_id = worker_id
        self.held: set[bytes] = set()
        self.log = EventLog(max_queued=12, snapshot_every=SNAPSHOT_EVERY, snapshot_bytes=100)
        self.publisher = IndexPublisher(cast(Redis, redis), CLUSTER, worker_id, self.log)

    def happen(self, stored: list[bytes], removed: list[bytes], cleared: bool) -> None:
        self.held = ((set() if cleared else self.held) - set(removed)) | set(stored)
        self.publisher.publish(CacheEvent(stored=tuple(stored), removed=tuple(removed), cleared=cleared))

    def step(self, beat: bool) -> None:
        if beat:
            self.publisher._beat_at = 0.0  # its clock's part
        with suppress(RedisError):
            now_or_never(self.publisher.send())


class RouterSide:
    """A router's replica and its reader."""

    def __init__(self, redis: FakeRedis) -> None:
        self.reader = IndexReader(cast(Redis, redis), CLUSTER, PrefixIndex(), clock=lambda: 0.0)

    def step(self) -> None:
        try:
            now_or_never(self.reader.turn(block_ms=0))
        except RedisError as error:
            self.reader.failed(error)  # as `run` does

    def holds(self, worker_id: str) -> set[int]:
        return set(self.reader.index.stored(worker_id).tolist())


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.redis = FakeRedis()
        self.num_born = 0
        self.workers = [self.born(), self.born()]
        self.routers = [RouterSide(self.redis), RouterSide(self.redis)]
        self.backup: FakeRedis | None = None
        self.see()

    def born(self) -> Worker:
        self.num_born += 1
        return Worker(self.redis, f"w{self.num_born}")

    def see(self) -> None:
        for router in self.routers:
            router.reader.set_workers(worker.worker_id for worker in self.workers)

    # --- life -----------------------------------------------------------------------------------------------------

    @rule(which=workers, stored=hash_lists, removed=hash_lists, cleared=st.integers(0, 9))
    def cache_changes(self, which: int, stored: list[bytes], removed: list[bytes], cleared: int) -> None:
        self.workers[which].happen(stored, removed, cleared == 9)

    @rule(which=workers, beat=st.booleans())
    def worker_sends(self, which: int, beat: bool) -> None:
        self.workers[which].step(beat)

    @rule(which=routers)
    def router_reads(self, which: int) -> None:
        self.routers[which].step()

    @rule(which=workers)
    def worker_is_replaced(self, which: int) -> None:
        self.workers[which] = self.born()
        self.see()

    @rule(which=routers)
    def router_restarts(self, which: int) -> None:
        self.routers[which] = RouterSide(self.redis)
        self.see()

    @rule(which=routers, worker=workers)
    def lease_lapses(self, which: int, worker: int) -> None:
        reader = self.routers[which].reader
        reader.set_workers([self.workers[1 - worker].worker_id])
        self.see()

    @rule(which=routers, worker=workers, hashes=hash_lists)
    def router_guesses(self, which: int, worker: int, hashes: list[bytes]) -> None:
        self.routers[which].reader.index.guess(self.workers[worker].worker_id, hashes, 1.0)

    # --- faults ---------------------------------------------------------------------------------------------------

    @rule(fault=st.sampled_from(["before", "after"]))
    def connection_breaks(self, fault: str) -> None:
        self.redis.fault = fault

    @rule(read_only=st.booleans())
    def redis_turns_read_only(self, read_only: bool) -> None:
        self.redis.read_only = read_only

    @rule()
    def redis_is_flushed(self) -> None:
        self.redis.flushall()

    @rule()
    def backup_is_made(self) -> None:
        self.backup = copy.deepcopy(self.redis)

    @precondition(lambda self: self.backup is not None)
    @rule()
    def redis_fails_over_to_the_backup(self) -> None:
        old = copy.deepcopy(self.backup)
        assert old is not None
        self.redis.values, self.redis.streams, self.redis.tops = old.values, old.streams, old.tops

    @rule(which=workers, at=st.integers(0, 5))
    def entry_is_lost(self, which: int, at: int) -> None:
        entries = self.entries(which)
        if at < len(entries):
            del entries[at]

    @rule(which=workers, keep=st.integers(0, 2))
    def stream_is_trimmed(self, which: int, keep: int) -> None:
        entries = self.entries(which)
        del entries[: len(entries) - keep]

    @rule(which=workers, first=st.integers(0, 3), second=st.integers(0, 3))
    def batches_change_places(self, which: int, first: int, second: int) -> None:
        entries = self.entries(which)
        if max(first, second) < len(entries):
            (a, batch), (b, other) = entries[first], entries[second]
            entries[first], entries[second] = (a, other), (b, batch)

    @rule(which=workers, first=st.integers(0, 3), second=st.integers(0, 3))
    def batch_comes_twice(self, which: int, first: int, second: int) -> None:
        entries = self.entries(which)
        if max(first, second) < len(entries):
            entries[second] = (entries[second][0], entries[first][1])

    @rule(which=workers, at=st.integers(0, 3), noise=st.sampled_from([b"", b"\x90", b"\x93\x01\x01\x91\x93\xc4\x01x"]))
    def batch_is_garbled(self, which: int, at: int, noise: bytes) -> None:
        entries = self.entries(which)
        if at < len(entries):
            entries[at] = (entries[at][0], {EVENTS_FIELD: noise})

    @rule(which=workers)
    def snapshot_is_lost(self, which: int) -> None:
        self.redis.values.pop(snapshot_key(CLUSTER, self.workers[which].worker_id), None)

    @rule(which=workers)
    def snapshot_is_garbled(self, which: int) -> None:
        key = snapshot_key(CLUSTER, self.workers[which].worker_id)
        if key in self.redis.values:
            self.redis.values[key] = b"\xc1"

    @rule(which=routers, worker=workers, hash_=st.sampled_from(HASHES), add=st.booleans())
    def memory_rots(self, which: int, worker: int, hash_: bytes, add: bool) -> None:
        self.rot(self.routers[which], self.workers[worker], hash_, add)

    def rot(self, router: RouterSide, worker: Worker, hash_: bytes, add: bool) -> None:
        """The silent divergence that only the digests can find."""
        part = router.reader.index._workers[worker.worker_id]
        changed = (part.bank.store if add else part.bank.remove)(part.bit, index_keys([hash_]))
        part.stored = part.stored.plus(changed) if add else part.stored.without(changed)

    def entries(self, which: int) -> list[Any]:
        return self.redis.streams.get(events_key(CLUSTER, self.workers[which].worker_id), [])

    # --- the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        self.redis.read_only, self.redis.fault = False, ""
        self.converge()
        self.rot(self.routers[0], self.workers[0], HASHES[5], add=HASHES[5] not in self.workers[0].held)
        self.converge()

    def converge(self) -> None:
        for worker in self.workers:
            worker.happen([HASHES[0]], [], False)  # the next batch, whose digest any divergence meets
        for _ in range(ROUNDS):
            for worker in self.workers:
                worker.step(beat=True)
            for router in self.routers:
                router.step()
        for router in self.routers:
            assert router.reader.degraded == ""
            assert set(router.reader.index.workers) == {worker.worker_id for worker in self.workers}
            router.reader.index.check()
            for worker in self.workers:
                assert router.holds(worker.worker_id) == set(index_keys(worker.held).tolist())
                assert router.reader.index.position(worker.worker_id) == parse(worker.log.last_id)
        assert max(len(self.entries(which)) for which in (0, 1)) <= 2 * SNAPSHOT_EVERY + 1


Cluster.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCluster = Cluster.TestCase


class LongCluster(Cluster):
    pass


LongCluster.TestCase.settings = settings(max_examples=3_000, stateful_step_count=80, deadline=None)
TestLongCluster = pytest.mark.slow(LongCluster.TestCase)
