"""Keeps the prefix index up to date from the workers' event logs in Redis.

One task reads all streams with one blocking XREAD. A worker that joins is loaded from its snapshot and read on from
there; so is one whose log has a gap, or whose digest says that the index silently believes something else. If that does
not help, the worker is asked for a new log. While Redis is away the index keeps its last view and `degraded` says so;
when it is back every worker is brought up to date again.

Requests never wait for any of this: they ask the index. Knows nothing about matching or placement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from redis.asyncio import Redis

from diptych.membership import REDIS_ERRORS, SOCKET_TIMEOUT_S, stop_if_cancelled
from kv_transfer.schema import (
    EVENTS_FIELD,
    WANTED_TTL_MS,
    EventBatch,
    Snapshot,
    events_key,
    snapshot_key,
    stream_id,
    wanted_key,
)
from router.prefix_index import Applied, PrefixIndex

log = logging.getLogger(__name__)

BLOCK_MS = 500  # one XREAD; below the socket's time-out, and a worker that joins waits no longer than this
assert BLOCK_MS / 1_000 < SOCKET_TIMEOUT_S
BATCHES_PER_READ = 64  # of one stream
SNAPSHOTS_PER_READ = 8
GATHER_S = 0.003  # between two reads: what arrives meanwhile is read together
RETRY_S = 0.1  # after an error, and while a worker's snapshot is missing

_decode_batch = msgspec.msgpack.Decoder(EventBatch).decode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


class Resync(StrEnum):
    """Why a worker is brought up to date by its snapshot."""

    JOINED = "joined"
    GAP = "gap"  # a batch is missing in its log
    DIVERGED = "diverged"  # a digest differed
    UNREADABLE = "unreadable"  # a batch could not be decoded
    OUTAGE = "outage"  # Redis was away


class Batches(StrEnum):
    """What became of a batch that was read."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    GAP = "gap"  # it was not the next one
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"  # its worker left while it was read


class IndexReader:
    """Feeds one `PrefixIndex`. `set_workers` says whose logs to read, `run` reads them."""

    def __init__(
        self,
        redis: Redis,
        cluster: str,
        index: PrefixIndex,
        observe_lag: Callable[[float], None] = lambda lag_s: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            observe_lag: told for every batch how old its first event was, in seconds, when it could be matched.
            clock: unix seconds; the lag is as right as the workers' clocks and this one agree.
        """
        self.index = index
        self.degraded = "not read yet"  # why the index may be old; empty: it is not
        self.batches: Counter[Batches] = Counter()
        self.resyncs: Counter[Resync] = Counter()  # snapshots loaded
        self.gaps_total = 0  # times that a log could not be followed: a batch was missing or unreadable
        self.divergences_total = 0  # digests that differed
        self.epochs_total = 0  # times that a worker we followed had begun a new log
        self.wanted_total = 0  # workers asked for a new log
        self.lag_s = 0.0  # of the batch read last
        self._redis = redis
        self._cluster = cluster
        self._observe_lag = observe_lag
        self._clock = clock
        self._workers: set[str] = set()
        self._stale: dict[str, Resync] = {}  # to be brought up to date by a snapshot
        self._broken: set[str] = set()  # those of them whose log could not be followed from where we are
        self._tried: dict[str, tuple[int, int]] = {}  # the snapshot last loaded because of that
        self._behind = False  # there is more to read than one read brings, or nothing was read since a snapshot
        self._joined = asyncio.Event()
        self._warm = asyncio.Event()

    def set_workers(self, worker_ids: Iterable[str]) -> None:
        """Those that are members now. Whoever is missing is dropped from the index at once."""
        wanted = set(worker_ids)
        for worker_id in self._workers - wanted:
            self.index.drop_worker(worker_id)
            self._stale.pop(worker_id, None)
            self._broken.discard(worker_id)
            self._tried.pop(worker_id, None)
        for worker_id in wanted - self._workers:
            self.index.add_worker(worker_id)
            self._stale[worker_id] = Resync.JOINED
        self._workers = wanted
        if self._stale:
            self._warm.clear()
            self._joined.set()
        elif not wanted:
            self._warm.set()

    @property
    def resyncs_total(self) -> int:
        return self.resyncs.total()

    async def caught_up(self, timeout_s: float) -> bool:
        """Wait until all workers given so far are in the index, or for so long. Whether they are.

        With the snapshot of each, and all that its log had behind it when that was read.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._warm.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            stop_if_cancelled()
            try:
                await self.turn()
            except REDIS_ERRORS as error:
                self.failed(error)
                await asyncio.sleep(RETRY_S)

    def failed(self, error: Exception) -> None:
        """A turn did: Redis may come back without what it had."""
        self.degraded = f"Redis: {error!r}"
        for worker_id in self._workers:
            self._stale.setdefault(worker_id, Resync.OUTAGE)

    async def turn(self, block_ms: int = BLOCK_MS) -> None:
        """Bring stale workers up to date, then wait for news of the others and take them.

        Raises:
            RedisError, OSError, TimeoutError: to be tried again.
        """
        self.index.sweep()
        if self._stale:
            await self._resync()
        self.degraded = f"behind on {', '.join(sorted(self._stale))}" if self._stale else ""
        if fresh := self._workers - self._stale.keys():
            wait_ms = 0 if self._behind else min(block_ms, int(1e3 * RETRY_S)) if self._stale else block_ms
            self._behind = await self._tail(fresh, wait_ms)
            if not self._stale and not self._behind:
                self._warm.set()
        elif self._stale:
            await asyncio.sleep(min(block_ms / 1e3, RETRY_S))
        elif block_ms:
            self._joined.clear()
            await self._joined.wait()

    # --- snapshots ------------------------------------------------------------------------------------------------

    async def _resync(self) -> None:
        """Load the snapshots of the stale workers, as far as they help."""
        worker_ids = sorted(self._stale)
        for start in range(0, len(worker_ids), SNAPSHOTS_PER_READ):
            some = worker_ids[start : start + SNAPSHOTS_PER_READ]
            values: list[Any] = await self._redis.mget([snapshot_key(self._cluster, worker_id) for worker_id in some])
            for worker_id, value in zip(some, values, strict=True):
                if value is not None and worker_id in self._stale and not self._load(worker_id, value):
                    await self._want(worker_id)
                await asyncio.sleep(0)  # a large one takes milliseconds

    def _load(self, worker_id: str, value: bytes) -> bool:
        """False: this snapshot has not helped before, or cannot be read."""
        try:
            snapshot = _decode_snapshot(value)
            position = (snapshot.epoch, snapshot.sequence)
            broken, before = worker_id in self._broken, self.index.position(worker_id)
            if broken and self._tried.get(worker_id) == position:
                return False
            applied = self.index.load(worker_id, snapshot, again=broken)
        except ValueError as error:
            log.error("the snapshot of %s cannot be read: %s", worker_id, error)
            return False
        if broken:
            self._tried[worker_id] = position
        self._behind = True  # the log goes on from there
        reason = self._stale.pop(worker_id)
        if applied is Applied.APPLIED:
            self.resyncs[reason] += 1
            self.epochs_total += 0 < before[0] < snapshot.epoch
        self._broken.discard(worker_id)
        return True

    async def _want(self, worker_id: str) -> None:
        """Ask a worker to start its log again."""
        asked = await self._redis.set(wanted_key(self._cluster, worker_id), b"1", px=WANTED_TTL_MS, nx=True)
        self.wanted_total += bool(asked)

    # --- events ---------------------------------------------------------------------------------------------------

    async def _tail(self, worker_ids: Iterable[str], block_ms: int) -> bool:
        """One read of all these workers' streams, blocking while they have no news. Whether one may have more."""
        keys = {events_key(self._cluster, worker_id).encode(): worker_id for worker_id in worker_ids}
        positions: dict[Any, Any] = {key: stream_id(*self.index.position(worker_id)) for key, worker_id in keys.items()}
        answer: Any = await self._redis.xread(positions, count=BATCHES_PER_READ, block=block_ms or None)
        for key, entries in answer:
            self._take(keys[key], [fields.get(EVENTS_FIELD, b"") for _, fields in entries])
            await asyncio.sleep(0)  # so many batches take milliseconds
        if answer and block_ms:
            await asyncio.sleep(GATHER_S)
        return any(len(entries) >= BATCHES_PER_READ for _, entries in answer)

    def _take(self, worker_id: str, encoded: Sequence[bytes]) -> None:
        """Apply batches of one worker. If that fails it is brought up to date by its snapshot."""
        if worker_id not in self._workers:  # it left while we were reading
            self.batches[Batches.UNKNOWN] += len(encoded)
            return
        before = self.index.position(worker_id)
        try:
            batches = [_decode_batch(each) for each in encoded]
            applied = self.index.apply(worker_id, *batches)
        except ValueError as error:
            log.error("the event log of %s cannot be read: %s", worker_id, error)
            self.batches[Batches.UNREADABLE] += len(encoded)
            self.gaps_total += 1
            self._break(worker_id, Resync.UNREADABLE)
            return
        num_applied = self.index.position(worker_id)[1] - before[1]
        self.batches[Batches.APPLIED] += num_applied
        if applied is Applied.GAP:
            log.warning("the event log of %s has a gap; loading its snapshot", worker_id)
            self.gaps_total += 1
            self._break(worker_id, Resync.GAP)
        elif applied is Applied.DIVERGED:
            log.error("the index differs from what %s holds; loading its snapshot", worker_id)
            self.divergences_total += 1
            self._break(worker_id, Resync.DIVERGED)
        self.batches[Batches.GAP if applied is Applied.GAP else Batches.DUPLICATE] += len(batches) - num_applied
        now = self._clock()
        for batch in batches:
            if batch.made_at:
                self.lag_s = max(0.0, now - batch.made_at)
                self._observe_lag(self.lag_s)

    def _break(self, worker_id: str, reason: Resync) -> None:
        self._stale[worker_id] = reason
        self._broken.add(worker_id)
