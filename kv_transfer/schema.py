"""What Diptych keeps in Redis: every key, its type, who writes it, how long it lives, and how large it gets.

| key                              | type   | writer     | life                                             |
|----------------------------------|--------|------------|--------------------------------------------------|
| {cluster}:workers                | set    | workers    | see `diptych.membership`, which owns these four  |
| {cluster}:worker:{id}            | string | the worker | one lease                                        |
| {cluster}:tombstone:{id}         | string | (1)        | a day                                            |
| {cluster}:era                    | string | workers    | for ever; gone or other: Redis lost its data     |
| {cluster}:index:{id}:events      | stream | the worker | INDEX_TTL_MS after its last sign of life         |
| {cluster}:index:{id}:snapshot    | string | the worker | the same                                         |
| {cluster}:index:{id}:wanted      | string | routers    | until the worker did it, else WANTED_TTL_MS      |
| {cluster}:reservations           | stream | routers    | see `router.sharing.log`, which owns it          |

(1) The worker itself as the last thing of a clean exit, else the controller once the process is gone.

**Keys.** The index knows a block by its *index key*: the first 8 bytes of its hash as a little-endian number with the
lowest bit set (so that 0 is free for tables). Two of 2**20 blocks share one with odds of 2**-24; that would make a
match wrong by a block, which costs time and nothing else. No token ids and no text are stored here.

**Events.** Each stream entry has one field, EVENTS_FIELD: msgpack of `EventBatch`, and the id `epoch-sequence`. So the
server itself refuses to append a batch twice or out of order, and a reader's position is a stream id. Within an epoch
sequences rise by one from 1; a reader that misses one has a gap and reads the snapshot. A new epoch begins whenever the
worker cannot vouch for the log (Redis lost data, its queue overflowed, a router asked for it through `wanted`); its
first batch is empty and only announces it. Every batch carries a digest of what the worker holds after it, so a reader
that silently believes something else finds out with the next batch.

**Snapshot.** msgpack of `Snapshot`: all keys exactly after `sequence` of `epoch`; reading on from that id gives the
rest. Written in one transaction with the batch of that sequence (at an epoch's start: with the one behind it), every
SNAPSHOT_EVERY batches, or once those since the last one are larger than it and than SNAPSHOT_BYTES.

**Trimming** happens only there, and only up to the snapshot before: whoever has just read that one still finds all that
follows it. Nothing trims by length or age, so a slow reader never meets a hole that a snapshot does not cover.

**Memory.** A worker with B blocks has a snapshot of 8 B bytes and a stream of at most two intervals between snapshots:
each at most max(8 B, SNAPSHOT_BYTES) plus one batch (at most MAX_QUEUED_HASHES keys, 2 MiB), and at most SNAPSHOT_EVERY
entries of about 100 bytes beside their keys. That is 24 B bytes + 0.7 MiB in practice: 0.8 MiB for 4,096 blocks, 3 MiB
for 100,000. Membership is about 1.5 kB a living worker and 150 bytes a tombstone. All of it expires by itself: a worker
id is an incarnation, and its keys are never written again after its death.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from diptych.membership import era_key, tombstone_key, worker_key, workers_key
from kv_transfer.hashing import HASH_BYTES

__all__ = [
    "EVENTS_FIELD",
    "Digest",
    "EventBatch",
    "Events",
    "IndexEvent",
    "Keys",
    "Snapshot",
    "digest_of",
    "era_key",
    "events_key",
    "index_keys",
    "join_hashes",
    "read_keys",
    "snapshot_key",
    "stream_id",
    "tombstone_key",
    "wanted_key",
    "worker_key",
    "workers_key",
]

EVENTS_FIELD = b"b"
KEY_BYTES = 8
SNAPSHOT_EVERY = 1_000  # batches
SNAPSHOT_BYTES = 256 * 1024  # of batches
MAX_QUEUED_HASHES = 262_144  # keys a worker lets wait for Redis before it begins a new epoch; so also of a batch
INDEX_TTL_MS = 3_600_000
WANTED_TTL_MS = 10_000

Keys = npt.NDArray[np.uint64]  # index keys, one a block

_LITTLE_ENDIAN = np.dtype("<u8")
_ODD = np.uint64(1)


class Events(Protocol):
    """A change of a prefix cache, as the engine reports it."""

    @property
    def stored(self) -> Sequence[bytes]: ...
    @property
    def removed(self) -> Sequence[bytes]: ...
    @property
    def cleared(self) -> bool: ...


class IndexEvent(msgspec.Struct, frozen=True, array_like=True):
    """One change, applied in the order cleared, removed, stored. Index keys are joined, KEY_BYTES each."""

    stored: bytes = b""
    removed: bytes = b""
    cleared: bool = False


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """A set of index keys in two numbers, quick to keep up to date."""

    num_blocks: int = 0
    xor: int = 0  # of all keys

    def plus(self, keys: Keys) -> Digest:
        """With keys that were not in the set."""
        return Digest(self.num_blocks + keys.size, self.xor ^ int(np.bitwise_xor.reduce(keys)))

    def without(self, keys: Keys) -> Digest:
        """Without keys that were in the set."""
        return Digest(self.num_blocks - keys.size, self.xor ^ int(np.bitwise_xor.reduce(keys)))


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    epoch: int
    sequence: int
    events: list[IndexEvent]
    digest: Digest | None = None  # of what the worker holds after it
    made_at: float = 0.0  # unix seconds by the worker's clock, when its first event happened; 0: it has none


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    epoch: int
    sequence: int  # of the last batch included; 0: none of this epoch
    keys: bytes  # joined, distinct, in no particular order


def events_key(cluster: str, worker_id: str) -> str:
    return f"{cluster}:index:{worker_id}:events"


def snapshot_key(cluster: str, worker_id: str) -> str:
    return f"{cluster}:index:{worker_id}:snapshot"


def wanted_key(cluster: str, worker_id: str) -> str:
    return f"{cluster}:index:{worker_id}:wanted"


def stream_id(epoch: int, sequence: int) -> str:
    """The id of a batch in its stream; those of later batches are greater."""
    return f"{epoch}-{sequence}"


def index_keys(hashes: Iterable[bytes]) -> Keys:
    """Index keys of block hashes (HASH_BYTES each), in their order.

    Raises:
        ValueError: the hashes' lengths do not add up.
    """
    words: Keys = np.frombuffer(b"".join(hashes), _LITTLE_ENDIAN)
    if words.size % (HASH_BYTES // KEY_BYTES):
        raise ValueError(f"a block hash has {HASH_BYTES} bytes")
    return words[:: HASH_BYTES // KEY_BYTES] | _ODD


def join_hashes(hashes: Iterable[bytes]) -> bytes:
    """Index keys of block hashes as events and snapshots carry them."""
    return index_keys(hashes).tobytes()


def read_keys(joined: bytes) -> Keys:
    """Index keys out of an event or a snapshot.

    Raises:
        ValueError: the length is not a multiple of KEY_BYTES.
    """
    keys: Keys = np.frombuffer(joined, _LITTLE_ENDIAN) | _ODD  # whatever wrote it: tables need odd ones
    return keys


def digest_of(keys: Keys) -> Digest:
    """Of distinct keys."""
    return Digest().plus(keys)
