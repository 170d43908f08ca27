"""Keeps the prefix index up to date from the workers' event streams in Redis.

One task reads all streams with one blocking XREAD. A worker that joins, or whose log has a gap, is brought up to date
by its snapshot and the stream from there on. While Redis is away the index keeps its last view and `degraded` says so;
when it is back every worker is brought up to date again.

Knows nothing about matching or placement.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import msgspec
from redis.asyncio import Redis

from diptych.membership import REDIS_ERRORS, SOCKET_TIMEOUT_S, stop_if_cancelled
from kv_transfer.schema import EVENTS_FIELD, STREAM_START, EventBatch, Snapshot, events_key, snapshot_key
from router.prefix_index import Applied, PrefixIndex

log = logging.getLogger(__name__)

BLOCK_MS = 500  # one XREAD; below the socket's time-out, and a worker that joins waits no longer than this
assert BLOCK_MS / 1_000 < SOCKET_TIMEOUT_S
BATCHES_PER_READ = 256  # of one stream
RETRY_S = 0.1  # after an error, and after a snapshot that did not close a gap

_decode_batch = msgspec.msgpack.Decoder(EventBatch).decode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


class IndexReader:
    """Feeds one `PrefixIndex`. `set_workers` says whose streams to read, `run` reads them."""

    def __init__(self, redis: Redis, cluster: str, index: PrefixIndex) -> None:
        self.index = index
        self.degraded = "not read yet"  # why the index may be old; empty: it is not
        self.resyncs_total = 0
        self.batches_total = 0
        self._redis = redis
        self._cluster = cluster
        self._positions: dict[str, bytes] = {}  # worker id -> stream id read last
        self._stale: set[str] = set()  # to be brought up to date by a snapshot
        self._gapped: set[str] = set()  # those of them that need a newer snapshot than what is known
        self._joined = asyncio.Event()

    def set_workers(self, worker_ids: Iterable[str]) -> None:
        """Those that are members now. Whoever is missing is dropped from the index at once."""
        wanted = set(worker_ids)
        for worker_id in set(self._positions) - wanted:
            self.index.drop_worker(worker_id)
            del self._positions[worker_id]
            self._stale.discard(worker_id)
            self._gapped.discard(worker_id)
        for worker_id in wanted - set(self._positions):
            self.index.add_worker(worker_id)
            self._positions[worker_id] = STREAM_START
            self._stale.add(worker_id)
            self._joined.set()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            stop_if_cancelled()
            try:
                await self._turn()
            except REDIS_ERRORS as error:
                self.degraded = f"Redis: {error!r}"
                self._stale.update(self._positions)
                await asyncio.sleep(RETRY_S)

    async def _turn(self) -> None:
        self.index.sweep()
        if self._stale and not await self._resync():
            self.degraded = f"behind on {', '.join(sorted(self._stale))}"
            await asyncio.sleep(RETRY_S)
        elif not self._stale:
            self.degraded = ""
        fresh = [worker_id for worker_id in self._positions if worker_id not in self._stale]
        if fresh:
            await self._tail(fresh)
        elif not self._positions:
            self._joined.clear()
            await self._joined.wait()

    async def _resync(self) -> bool:
        """Load the snapshots of all stale workers. False: some had none that helps, yet."""
        worker_ids = sorted(self._stale)
        values: list[Any] = await self._redis.mget([snapshot_key(self._cluster, worker_id) for worker_id in worker_ids])
        for worker_id, value in zip(worker_ids, values, strict=True):
            if worker_id in self._stale and value is not None:
                self._load(worker_id, _decode_snapshot(value))
        return not self._stale

    def _load(self, worker_id: str, snapshot: Snapshot) -> None:
        applied = self.index.load(worker_id, snapshot)
        if applied is Applied.APPLIED:
            self._positions[worker_id] = snapshot.stream_id
            self.resyncs_total += 1
        elif worker_id in self._gapped:
            return  # older than what we have: it does not close the gap
        self._stale.discard(worker_id)
        self._gapped.discard(worker_id)

    async def _tail(self, worker_ids: list[str]) -> None:
        """One blocking read of all streams."""
        keys = {events_key(self._cluster, worker_id).encode(): worker_id for worker_id in worker_ids}
        positions: dict[Any, Any] = {key: self._positions[worker_id] for key, worker_id in keys.items()}
        block_ms = BLOCK_MS if not self._stale else 1
        answer: Any = await self._redis.xread(positions, count=BATCHES_PER_READ, block=block_ms)
        for key, entries in answer:
            for stream_id, fields in entries:
                if not self._take(keys[key], stream_id, fields[EVENTS_FIELD]):
                    break

    def _take(self, worker_id: str, stream_id: bytes, encoded: bytes) -> bool:
        """Apply one batch. False: leave the rest of this stream."""
        applied = self.index.apply(worker_id, _decode_batch(encoded))
        self.batches_total += 1
        if applied is Applied.GAP:
            log.warning("the event log of %s has a gap; loading its snapshot", worker_id)
            self._stale.add(worker_id)
            self._gapped.add(worker_id)
        elif applied is not Applied.UNKNOWN:  # it may have left while we were reading
            self._positions[worker_id] = stream_id
            return True
        return False
