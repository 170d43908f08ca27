"""A worker's side of the index, decided: what its log in Redis is to hold next. Pure: events in, writes out.

A mirror is kept of what the prefix cache holds, from its events. What happened since the last write becomes the next
batch; now and then, and at the start of an epoch, a snapshot of the mirror goes with it. Nothing is dropped silently:
when too much is waiting, or the log turns out to be not what was written, the worker fences itself with a new epoch.

Knows no Redis and no clock (times are arguments). `publisher` does the writing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import xor

import msgspec
import numpy as np

from kv_transfer.schema import (
    KEY_BYTES,
    MAX_QUEUED_HASHES,
    SNAPSHOT_BYTES,
    SNAPSHOT_EVERY,
    Digest,
    EventBatch,
    Events,
    IndexEvent,
    Snapshot,
    index_keys,
    stream_id,
)


@dataclass(frozen=True, slots=True)
class Write:
    """One batch, and what goes with it in one transaction."""

    stream_id: str
    after: str  # id of the entry before it; "" at the start of an epoch: there need not be one
    batch: bytes
    snapshot: bytes = b""  # to replace the old one
    trim_before: str = ""  # entries with smaller ids are no longer needed


class EventLog:
    """One incarnation's log. `next_write` gives the same write until it is `written` or the log is fenced."""

    def __init__(
        self,
        max_queued: int = MAX_QUEUED_HASHES,
        snapshot_every: int = SNAPSHOT_EVERY,
        snapshot_bytes: int = SNAPSHOT_BYTES,
    ) -> None:
        """
        Args:
            max_queued: keys, and one for every event, that may wait.
            snapshot_every: batches between two snapshots, at most.
            snapshot_bytes: of batches; below this a snapshot is not written on account of their size.
        """
        self.epoch = 0
        self.sequence = 0  # of the latest write
        self.digest = Digest()  # of the mirror
        self.overflows_total = 0
        self._mirror: set[int] = set()
        self._queue: list[IndexEvent] = []
        self._num_queued = 0
        self._queued_since = 0.0
        self._max_queued = max_queued
        self._snapshot_every = snapshot_every
        self._snapshot_bytes = snapshot_bytes
        self._pending: Write | None = None
        self._fenced = True
        self._batches = 0  # since the last snapshot
        self._bytes = 0
        self._last_snapshot = ""  # stream id

    @property
    def num_queued(self) -> int:
        return self._num_queued

    @property
    def has_news(self) -> bool:
        return bool(self._fenced or self._pending or self._queue)

    @property
    def last_id(self) -> str:
        """Of the entry that the stream ends with, unless a write is on its way."""
        return stream_id(self.epoch, self.sequence)

    def publish(self, events: Events, now: float) -> bool:
        """Take one change of the cache. False: too much was waiting, and a new epoch will begin."""
        if events.cleared:
            self._mirror.clear()
            self.digest = Digest()
        removed, stored = index_keys(events.removed), index_keys(events.stored)
        gone = self._mirror.intersection(removed.tolist())
        self._mirror -= gone
        self.digest = _changed(self.digest, -len(gone), gone)
        new = set(stored.tolist()) - self._mirror
        self._mirror |= new
        self.digest = _changed(self.digest, len(new), new)
        if self._fenced:  # the coming snapshot has it
            return True
        self._queued_since = self._queued_since if self._queue else now
        self._queue.append(IndexEvent(stored.tobytes(), removed.tobytes(), events.cleared))
        self._num_queued += removed.size + stored.size + 1
        if self._num_queued > self._max_queued:
            self.overflows_total += 1
            self.fence()
            return False
        return True

    def fence(self, at_least: int = 0) -> None:
        """The log cannot be vouched for: forget what waits and begin a new epoch, above `at_least`."""
        self._fenced = True
        self.epoch = max(self.epoch, at_least)
        self._queue, self._num_queued = [], 0
        self._pending = None

    def next_write(self) -> Write | None:
        """What to write next; None if there is nothing."""
        if self._pending is None:
            if self._fenced:
                self._pending = self._start()
            elif self._queue:
                self._pending = self._continue()
        return self._pending

    def written(self) -> None:
        """Redis has confirmed the write."""
        self._pending = None

    def _start(self) -> Write:
        """A snapshot, and the empty batch that announces it."""
        self._fenced = False  # from here on events are queued again: they follow the snapshot
        self.epoch += 1
        self.sequence = 1
        snapshot = self._snapshot(0)
        batch = msgspec.msgpack.encode(EventBatch(self.epoch, 1, [], self.digest))
        return Write(self.last_id, "", batch, snapshot, trim_before=self.last_id)

    def _continue(self) -> Write:
        """Everything that waits, and a snapshot if one is due. The mirror is exactly what holds after the batch."""
        after = self.last_id
        self.sequence += 1
        batch = msgspec.msgpack.encode(
            EventBatch(self.epoch, self.sequence, self._queue, self.digest, self._queued_since)
        )
        self._queue, self._num_queued = [], 0
        self._batches += 1
        self._bytes += len(batch)
        too_large = self._bytes >= max(self._snapshot_bytes, KEY_BYTES * len(self._mirror))
        if self._batches < self._snapshot_every and not too_large:
            return Write(self.last_id, after, batch)
        before = self._last_snapshot
        return Write(self.last_id, after, batch, self._snapshot(self.sequence), trim_before=before)

    def _snapshot(self, sequence: int) -> bytes:
        self._batches, self._bytes = 0, 0
        self._last_snapshot = stream_id(self.epoch, sequence)
        keys = np.fromiter(self._mirror, np.uint64, len(self._mirror)).astype("<u8", copy=False)
        return msgspec.msgpack.encode(Snapshot(self.epoch, sequence, keys.tobytes()))


def _changed(digest: Digest, count: int, keys: Iterable[int]) -> Digest:
    return Digest(digest.num_blocks + count, reduce(xor, keys, digest.xor)) if count else digest
