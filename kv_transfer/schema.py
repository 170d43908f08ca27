"""What Diptych keeps in Redis: every key, its type, who writes it, and how long it lives.

| key                              | type   | writer     | life                                             |
|----------------------------------|--------|------------|--------------------------------------------------|
| {cluster}:workers                | set    | workers    | see `diptych.membership`, which owns these four  |
| {cluster}:worker:{id}            | string | the worker | one lease                                        |
| {cluster}:tombstone:{id}         | string | (1)        | a day                                            |
| {cluster}:era                    | string | workers    | for ever; gone or other: Redis lost its data     |
| {cluster}:index:{id}:events      | stream | the worker | INDEX_TTL_MS after its last sign of life         |
| {cluster}:index:{id}:snapshot    | string | the worker | the same                                         |

(1) The worker itself as the last thing of a clean exit, else the controller once the process is gone.

**Events.** Each stream entry has one field, EVENTS_FIELD: msgpack of `EventBatch`. Within an epoch sequences rise by
one from 1; a reader that misses one has a gap and reads the snapshot. A new epoch begins whenever the worker cannot
vouch for the log (Redis lost data, its queue overflowed); its first batch is empty and only announces it. An entry may
appear twice (a retry after an answer was lost); equal sequences hold equal events.

**Snapshot.** msgpack of `Snapshot`: all hashes after `sequence` of `epoch`, and the stream id of that batch, from where
to read on. It may already hold some of what follows: for each hash the last event wins, so replaying them ends in the
same state. It is written at least every SNAPSHOT_EVERY batches and the stream keeps at least twice as many, so snapshot
and stream always overlap.

A worker id is an incarnation: its keys are never written again after its death and expire by themselves. No token ids
and no text are stored here, only keyed hashes, which mean nothing without the model fingerprint and the tenant's scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from diptych.membership import era_key, tombstone_key, worker_key, workers_key
from kv_transfer.hashing import HASH_BYTES

__all__ = [
    "EVENTS_FIELD",
    "EventBatch",
    "Events",
    "IndexEvent",
    "Snapshot",
    "era_key",
    "events_key",
    "join_hashes",
    "snapshot_key",
    "split_hashes",
    "tombstone_key",
    "worker_key",
    "workers_key",
]

EVENTS_FIELD = b"b"
STREAM_START = b"0-0"
SNAPSHOT_EVERY = 1_000  # batches
STREAM_MAXLEN = 4_096  # batches; trimmed approximately, never below this
INDEX_TTL_MS = 3_600_000


class Events(Protocol):
    """A change of a prefix cache, as the engine reports it."""

    @property
    def stored(self) -> Sequence[bytes]: ...
    @property
    def removed(self) -> Sequence[bytes]: ...
    @property
    def cleared(self) -> bool: ...


class IndexEvent(msgspec.Struct, frozen=True, array_like=True):
    """One change, applied in the order cleared, removed, stored. Hashes are joined, HASH_BYTES each."""

    stored: bytes = b""
    removed: bytes = b""
    cleared: bool = False


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    epoch: int
    sequence: int
    events: list[IndexEvent]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    epoch: int
    sequence: int  # of the last batch included; 0: none
    stream_id: bytes  # of that batch: later ones follow it
    hashes: bytes  # joined, in no particular order


def events_key(cluster: str, worker_id: str) -> str:
    return f"{cluster}:index:{worker_id}:events"


def snapshot_key(cluster: str, worker_id: str) -> str:
    return f"{cluster}:index:{worker_id}:snapshot"


def join_hashes(hashes: Sequence[bytes]) -> bytes:
    return b"".join(hashes)


def split_hashes(joined: bytes) -> list[bytes]:
    """
    Raises:
        ValueError: the length is not a multiple of HASH_BYTES.
    """
    if len(joined) % HASH_BYTES:
        raise ValueError(f"{len(joined)} bytes are not hashes of {HASH_BYTES} bytes")
    return [joined[start : start + HASH_BYTES] for start in range(0, len(joined), HASH_BYTES)]
