"""A worker's side of the index: puts its prefix cache's events into Redis, off the step loop.

`publish` only appends to a bounded queue. A background task sends what is queued as one batch every few milliseconds
and a snapshot now and then (see `schema`). Nothing is dropped silently: when the queue overflows, or Redis turns out to
hold something else than what was written, a new epoch begins with a fresh snapshot, taken from a mirror that is kept
from the events themselves.

Knows nothing about blocks, tokens or routers.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from redis.asyncio import Redis

from diptych.membership import REDIS_ERRORS, stop_if_cancelled
from kv_transfer.schema import (
    EVENTS_FIELD,
    INDEX_TTL_MS,
    SNAPSHOT_EVERY,
    STREAM_MAXLEN,
    STREAM_START,
    EventBatch,
    Events,
    IndexEvent,
    Snapshot,
    events_key,
    join_hashes,
    snapshot_key,
)

log = logging.getLogger(__name__)

FLUSH_S = 0.01  # events of so long travel together; an index lag of 1 s would still be harmless
HEARTBEAT_S = 1.0  # with nothing to send: notices that Redis lost its data, and keeps the keys alive
MAX_BACKOFF_S = 1.0
MAX_QUEUED_HASHES = 262_144  # 4 MB


class IndexPublisher:
    """Publishes one worker incarnation's cache. Create it before the first event and `run` it until the worker ends."""

    def __init__(self, redis: Redis, cluster: str, worker_id: str, max_queued_hashes: int = MAX_QUEUED_HASHES) -> None:
        self.degraded = ""  # why Redis does not have everything; empty: it has, or is about to
        self.epoch = 0
        self.sequence = 0
        self.batches_total = 0
        self.overflows_total = 0
        self._redis = redis
        self._events_key = events_key(cluster, worker_id)
        self._snapshot_key = snapshot_key(cluster, worker_id)
        self._max_queued = max_queued_hashes
        self._mirror: set[bytes] = set()  # what the cache holds, all published events applied
        self._queue: list[IndexEvent] = []
        self._num_queued = 0  # hashes
        self._unsent: bytes | None = None  # the batch being sent, until Redis has confirmed it
        self._last_id = STREAM_START  # of the last batch that Redis confirmed
        self._since_snapshot = 0
        self._new_epoch = True
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

    @property
    def num_hashes(self) -> int:
        return len(self._mirror)

    def publish(self, events: Events) -> None:
        """Queue one change; never waits."""
        if events.cleared:
            self._mirror.clear()
        self._mirror.difference_update(events.removed)
        self._mirror.update(events.stored)
        if self._new_epoch:  # the coming snapshot has it
            self._wake.set()
            return
        self._queue.append(IndexEvent(join_hashes(events.stored), join_hashes(events.removed), events.cleared))
        self._num_queued += len(events.stored) + len(events.removed) + 1
        if self._num_queued > self._max_queued:
            self.overflows_total += 1
            self._begin_epoch("its queue overflowed")
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until Redis has everything that was published before."""
        self._idle.clear()
        self._wake.set()
        await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled; survives Redis being away."""
        backoff_s = FLUSH_S
        while True:
            stop_if_cancelled()
            try:
                await self._send()
            except REDIS_ERRORS as error:
                self.degraded = f"Redis: {error!r}"
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
                await asyncio.sleep(backoff_s)
                continue
            self.degraded, backoff_s = "", FLUSH_S
            if not self._queue and not self._new_epoch:
                self._idle.set()
                await self._wait()

    async def _wait(self) -> None:
        """Until there is something to send and its companions had time to gather, or a heartbeat is due."""
        self._wake.clear()
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(FLUSH_S)

    async def _send(self) -> None:
        """Everything that is queued, as one batch; or, with nothing queued, a heartbeat."""
        if not self._new_epoch:
            if self._unsent is None and self._queue:
                self._unsent = self._next_batch()
            if not await self._add(self._unsent):
                self._begin_epoch("Redis does not hold what was written")
        if self._new_epoch:
            await self._start_epoch()
        elif self._since_snapshot >= SNAPSHOT_EVERY:
            await self._write_snapshot()

    async def _add(self, batch: bytes | None) -> bool:
        """Append a batch, if any, and keep the keys alive. False: the log before it did not end with our last one."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xrevrange(self._events_key, count=1)
            pipe.pexpire(self._events_key, INDEX_TTL_MS)
            pipe.pexpire(self._snapshot_key, INDEX_TTL_MS)
            if batch is not None:
                pipe.xadd(self._events_key, {EVENTS_FIELD: batch}, maxlen=STREAM_MAXLEN, approximate=True)
            last, _, snapshot_exists, *added = await pipe.execute()
        if not last or last[0][0] != self._last_id or not snapshot_exists:
            return False
        if added:
            self._last_id = added[0]
            self._unsent = None
            self.batches_total += 1
            self._since_snapshot += 1
        return True

    async def _start_epoch(self) -> None:
        """Write a snapshot and, in one transaction with it, the empty batch that announces it."""
        last = await self._redis.xrevrange(self._events_key, count=1)
        before: Any = last[0][0] if last else STREAM_START
        self.epoch += 1
        self.sequence = 1
        self._new_epoch = False  # from here on events are queued again: they follow the snapshot
        snapshot = Snapshot(self.epoch, 0, before, join_hashes(list(self._mirror)))
        announcement = EventBatch(self.epoch, self.sequence, [])
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(self._snapshot_key, msgspec.msgpack.encode(snapshot), px=INDEX_TTL_MS)
                pipe.xadd(self._events_key, {EVENTS_FIELD: msgspec.msgpack.encode(announcement)})
                pipe.pexpire(self._events_key, INDEX_TTL_MS)
                _, self._last_id, _ = await pipe.execute()
        except REDIS_ERRORS:
            self._begin_epoch("its start could not be written")
            raise
        self._since_snapshot = 0

    async def _write_snapshot(self) -> None:
        snapshot = Snapshot(self.epoch, self.sequence, self._last_id, join_hashes(list(self._mirror)))
        await self._redis.set(self._snapshot_key, msgspec.msgpack.encode(snapshot), px=INDEX_TTL_MS)
        self._since_snapshot = 0

    def _begin_epoch(self, why: str) -> None:
        if self.epoch:
            log.warning("the index log starts again: %s", why)
        self._new_epoch = True
        self._queue = []
        self._num_queued = 0
        self._unsent = None

    def _next_batch(self) -> bytes:
        self.sequence += 1
        batch = EventBatch(self.epoch, self.sequence, self._queue)
        self._queue = []
        self._num_queued = 0
        return msgspec.msgpack.encode(batch)
