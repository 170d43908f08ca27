"""A router's replica of who holds which KV blocks. Pure: events in, matches out.

Every worker has a bit in a bank of 64; a block's index key leads to the mask of its holders. A prompt is matched by
looking up all its keys at once and AND-ing the masks from the front, so a match is exact for any set of holders: it
does not rely on a worker holding the blocks before the ones it holds. A dead worker's bit is masked out at once; what
it leaves in the table is cleaned up little by little by `sweep`, and only then is the bit used again.

A worker's log is applied in order of (epoch, sequence), each batch once, and every batch says what the worker holds
after it as a count and an XOR; anything else than the next batch, or another digest, is told to the caller, who loads
the worker's snapshot and reads its log from there (`index_reader`).

The index is advisory: a wrong entry may cost time, never a wrong token. Knows no Redis, no clock (time is an argument)
and nothing about how a match is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from kv_transfer.schema import Digest, EventBatch, Keys, Snapshot, digest_of, index_keys, read_keys
from router.index_bank import BITS, IndexBank


class Applied(Enum):
    """What became of a batch or a snapshot."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # old news
    GAP = "gap"  # something is missing before it: load the snapshot
    DIVERGED = "diverged"  # applied, and now the worker holds something else than we believe: load the snapshot
    UNKNOWN = "unknown"  # of a worker that never joined or has left


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The index against the workers' truth, in blocks, at each worker's last check: a digest or a snapshot."""

    num_believed: int = 0
    num_true: int = 0
    num_both: int = 0

    @property
    def precision(self) -> float:
        """The share of what was believed that was true; 1 when nothing was believed."""
        return self.num_both / self.num_believed if self.num_believed else 1.0

    @property
    def recall(self) -> float:
        """The share of what was true that was believed; 1 when nothing was true."""
        return self.num_both / self.num_true if self.num_true else 1.0

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(
            self.num_believed + other.num_believed, self.num_true + other.num_true, self.num_both + other.num_both
        )


EMPTY = Digest()
NOBODY = np.uint64(0)
UNCHECKED = Accuracy()


@dataclass(slots=True)
class _Worker:
    bank: IndexBank
    bit: np.uint64
    epoch: int = 0
    sequence: int = 0
    stored: Digest = EMPTY  # of what it said it holds
    accuracy: Accuracy = UNCHECKED


class PrefixIndex:
    """Which worker holds how long a prefix of a prompt."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._banks: list[IndexBank] = []
        self.wrong_total = 0  # blocks that were believed and that a snapshot took away again
        self.missed_total = 0  # and those it brought to a worker that was followed already

    def __len__(self) -> int:
        """Number of distinct blocks known (counted once for every 64 workers)."""
        return sum(map(len, self._banks))

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return sum(bank.nbytes for bank in self._banks)

    @property
    def workers(self) -> list[str]:
        return list(self._workers)

    @property
    def accuracy(self) -> Accuracy:
        """Of all workers together."""
        return sum((worker.accuracy for worker in self._workers.values()), UNCHECKED)

    def position(self, worker_id: str) -> tuple[int, int]:
        """(epoch, sequence) of the last batch applied for a worker that has joined."""
        worker = self._workers[worker_id]
        return worker.epoch, worker.sequence

    def num_blocks(self, worker_id: str) -> int:
        """Blocks a worker has said it holds; guesses not counted."""
        worker = self._workers.get(worker_id)
        return worker.stored.num_blocks if worker else 0

    def stored(self, worker_id: str) -> Keys:
        """Index keys of those blocks, in no particular order. Looks at the whole table: for tests and inspection."""
        worker = self._workers[worker_id]
        return worker.bank.stored(worker.bit)

    # --- who is here ----------------------------------------------------------------------------------------------

    def add_worker(self, worker_id: str) -> None:
        """A worker joined. Only then are its events taken. Idempotent."""
        if worker_id not in self._workers:
            bank = self._bank_with_room()
            self._workers[worker_id] = _Worker(bank, bank.join(worker_id))

    def drop_worker(self, worker_id: str) -> None:
        """A worker left for ever: nothing of it matches from now on, and later events of it are ignored. O(1)."""
        if worker := self._workers.pop(worker_id, None):
            worker.bank.leave(worker.bit)

    def sweep(self, max_buckets: int = 8_192) -> bool:
        """Clean up after workers that left, a part of the table at a time. False: all is clean."""
        left = [bank.sweep(max_buckets) for bank in self._banks]
        return any(left)

    def _bank_with_room(self) -> IndexBank:
        """Filled in order: a match costs as much as there are banks."""
        for bank in self._banks:
            while not bank.has_room and bank.sweep(bank.held.num_buckets):
                pass
            if bank.has_room:
                return bank
        self._banks.append(IndexBank())
        return self._banks[-1]

    # --- what workers say -----------------------------------------------------------------------------------------

    def apply(self, worker_id: str, *batches: EventBatch) -> Applied:
        """Take the next batches of a worker's log. Idempotent; a batch out of order changes nothing.

        Several at once are applied as one where that makes no difference. What the first one that could not be applied
        says is the answer, else what the last one says; `position` tells how far it went.
        """
        worker = self._workers.get(worker_id)
        if worker is None:
            return Applied.UNKNOWN
        answer, last = Applied.DUPLICATE, None
        runs = _Runs()
        for batch in batches:
            if (batch.epoch, batch.sequence) <= (worker.epoch, worker.sequence):
                continue
            if batch.epoch != worker.epoch or batch.sequence != worker.sequence + 1:
                answer = Applied.GAP
                break
            for event in batch.events:
                if event.cleared:
                    runs = _Runs()
                    worker.bank.clear(worker.bit)
                    worker.stored = EMPTY
                runs.removed(event.removed)
                runs.stored(event.stored)
            worker.sequence, last, answer = batch.sequence, batch, Applied.APPLIED
        self._change(worker, *runs.net())
        if answer is Applied.APPLIED and last is not None and last.digest is not None:
            if last.digest != worker.stored:
                return Applied.DIVERGED
            num = worker.stored.num_blocks
            worker.accuracy = Accuracy(num, num, num)
        return answer

    def load(self, worker_id: str, snapshot: Snapshot, again: bool = False) -> Applied:
        """Replace what is known about a worker, unless it is already newer. Guesses stay.

        Args:
            again: even if it is newer: the log has to be read from there once more.
        """
        worker = self._workers.get(worker_id)
        if worker is None:
            return Applied.UNKNOWN
        if not again and (snapshot.epoch, snapshot.sequence) <= (worker.epoch, worker.sequence):
            return Applied.DUPLICATE
        keys, believed = read_keys(snapshot.keys), worker.stored
        worker.stored = digest_of(keys)
        if believed.num_blocks == 0:
            worker.bank.store(worker.bit, keys)
            both = 0
        else:
            both = worker.bank.replace(worker.bit, keys)
        if worker.epoch:  # the first time there was nothing to be right or wrong about
            worker.accuracy = Accuracy(believed.num_blocks, worker.stored.num_blocks, both)
            self.wrong_total += believed.num_blocks - both
            self.missed_total += worker.stored.num_blocks - both
        worker.epoch, worker.sequence = snapshot.epoch, snapshot.sequence
        return Applied.APPLIED

    def _change(self, worker: _Worker, removed: Keys | None, stored: Keys | None) -> None:
        if removed is not None:
            worker.stored = worker.stored.without(worker.bank.remove(worker.bit, removed))
        if stored is not None:
            worker.stored = worker.stored.plus(worker.bank.store(worker.bit, stored))

    # --- what the router guesses and asks -------------------------------------------------------------------------

    def guess(self, worker_ids: str | Iterable[str], hashes: Iterable[bytes], expires_at: float) -> None:
        """A prompt was just placed on one or more workers, which will hold these blocks soon.

        A guess that the worker does not confirm lasts until `expires_at`, which must not decrease from call to call,
        and no longer than as long again; time passes with `matches`.
        """
        bits: dict[IndexBank, np.uint64] = {}
        for worker_id in (worker_ids,) if isinstance(worker_ids, str) else worker_ids:
            if worker := self._workers.get(worker_id):
                bits[worker.bank] = bits.get(worker.bank, NOBODY) | worker.bit
        keys = index_keys(hashes)
        for bank, mask in bits.items():
            if keys.size:
                bank.guess(mask, keys, expires_at)

    def matches(self, hashes: Sequence[bytes], now: float) -> dict[str, int]:
        """How many leading blocks of a prompt each worker holds; workers with none are left out."""
        keys = index_keys(hashes)
        matched: dict[str, int] = {}
        if not keys.size:
            return matched
        for bank in self._banks:
            here = bank.count_leading(keys, now)
            if matched:
                matched.update(here)
            else:
                matched = here
        return matched

    def check(self) -> None:
        """Assert what must hold. O(blocks)."""
        for bank in self._banks:
            bank.check()
        for worker_id, worker in self._workers.items():
            assert digest_of(self.stored(worker_id)) == worker.stored, f"{worker_id} is not what was counted"
        bits = [(id(worker.bank), int(worker.bit)) for worker in self._workers.values()]
        assert len(set(bits)) == len(bits) <= BITS * len(self._banks)


class _Runs:
    """Stored and removed keys in the order they came, gathered so that each run is one array operation."""

    def __init__(self) -> None:
        self._runs: list[tuple[bool, list[bytes]]] = []  # stored?, joined keys

    def stored(self, keys: bytes) -> None:
        self._add(True, keys)

    def removed(self, keys: bytes) -> None:
        self._add(False, keys)

    def _add(self, stored: bool, keys: bytes) -> None:
        if not keys:
            return
        if self._runs and self._runs[-1][0] is stored:
            self._runs[-1][1].append(keys)
        else:
            self._runs.append((stored, [keys]))

    def net(self) -> tuple[Keys | None, Keys | None]:
        """What to remove and what to store in the end: of each key the last run counts."""
        runs = [(stored, read_keys(b"".join(parts))) for stored, parts in self._runs]
        match runs:
            case []:
                return None, None
            case [(True, stored)]:
                return None, stored
            case [(False, removed)]:
                return removed, None
            case [(False, removed), (True, stored)]:
                return removed, stored
        keys = np.concatenate([keys for _, keys in runs])[::-1]
        is_stored = np.concatenate([np.full(keys.size, stored) for stored, keys in runs])[::-1]
        keys, last = np.unique(keys, return_index=True)  # the first in reverse order
        is_stored = is_stored.take(last)
        return keys.compress(~is_stored), keys.compress(is_stored)
