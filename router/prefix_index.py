"""A router's replica of who holds which KV blocks. Pure: events in, matches out.

Every worker has a bit; every known hash has an int with the bits of its holders. A prompt's hashes are looked up in
order while any worker still matches, so a match costs one dict look-up a block. A dead worker's bit is masked out at
once (O(1)); what it leaves in the dict is cleaned up little by little by `sweep`, and only then is the bit used again.

The index is advisory: a wrong entry may cost time, never a wrong token. Knows no Redis, no clock (time is an argument)
and nothing about how a match is used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from kv_transfer.schema import EventBatch, Snapshot, split_hashes


class Applied(Enum):
    """What became of a batch or a snapshot."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # old news
    GAP = "gap"  # something is missing before it: load the snapshot
    UNKNOWN = "unknown"  # of a worker that never joined or has left


@dataclass(slots=True)
class _Worker:
    worker_id: str
    bit: int
    epoch: int = 0
    sequence: int = 0
    stored: set[bytes] = field(default_factory=set)
    guessed: dict[bytes, float] = field(default_factory=dict)  # hash -> when the guess expires


class PrefixIndex:
    """Which worker holds how long a prefix of a prompt."""

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}  # hash -> bits; may still have bits of workers that left
        self._workers: dict[str, _Worker] = {}
        self._names: list[str] = [""]  # worker id by the bit_length of its bit
        self._live = 0  # bits of the workers that have not left
        self._free_bits: list[int] = []
        self._num_bits = 0
        self._gone: deque[_Worker] = deque()  # left, their hashes not cleaned up yet
        self._guesses: deque[tuple[float, str, bytes]] = deque()  # in order of expiry

    def __len__(self) -> int:
        """Number of distinct hashes known."""
        return len(self._holders)

    @property
    def workers(self) -> list[str]:
        return list(self._workers)

    def position(self, worker_id: str) -> tuple[int, int]:
        """(epoch, sequence) of the last batch applied for a worker that has joined."""
        worker = self._workers[worker_id]
        return worker.epoch, worker.sequence

    def num_blocks(self, worker_id: str) -> int:
        """Blocks a worker has said it holds; guesses not counted."""
        worker = self._workers.get(worker_id)
        return len(worker.stored) if worker else 0

    def add_worker(self, worker_id: str) -> None:
        """A worker joined. Only then are its events taken. Idempotent."""
        if worker_id in self._workers:
            return
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit = 1 << self._num_bits
            self._num_bits += 1
            self._names.append("")
        self._workers[worker_id] = _Worker(worker_id, bit)
        self._names[bit.bit_length()] = worker_id
        self._live |= bit

    def drop_worker(self, worker_id: str) -> None:
        """A worker left for ever: nothing of it matches from now on, and later events of it are ignored. O(1)."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._live &= ~worker.bit
            self._gone.append(worker)

    def sweep(self, max_hashes: int = 1_000) -> int:
        """Clean up after workers that left, at most so many hashes. Returns how many it did; 0: all is clean."""
        done = 0
        while self._gone and done < max_hashes:
            worker = self._gone[0]
            worker.stored.update(worker.guessed)
            worker.guessed.clear()
            for hash_ in list(islice(worker.stored, max_hashes - done)):
                worker.stored.discard(hash_)
                self._clear(hash_, worker.bit)
                done += 1
            if not worker.stored:
                self._gone.popleft()
                self._free_bits.append(worker.bit)
        return done

    def apply(self, worker_id: str, batch: EventBatch) -> Applied:
        """Take the next batch of a worker's log. Idempotent; a batch out of order changes nothing."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return Applied.UNKNOWN
        if (batch.epoch, batch.sequence) <= (worker.epoch, worker.sequence):
            return Applied.DUPLICATE
        if batch.epoch != worker.epoch or batch.sequence != worker.sequence + 1:
            return Applied.GAP
        for event in batch.events:
            if event.cleared:
                self._remove(worker, [*worker.stored, *worker.guessed])
            self._remove(worker, split_hashes(event.removed))
            self._store(worker, split_hashes(event.stored))
        worker.sequence = batch.sequence
        return Applied.APPLIED

    def load(self, worker_id: str, snapshot: Snapshot) -> Applied:
        """Replace what is known about a worker, unless it is already newer. Guesses stay."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return Applied.UNKNOWN
        if (snapshot.epoch, snapshot.sequence) <= (worker.epoch, worker.sequence):
            return Applied.DUPLICATE
        hashes = set(split_hashes(snapshot.hashes))
        for hash_ in worker.stored - hashes:
            worker.stored.discard(hash_)
            if hash_ not in worker.guessed:
                self._clear(hash_, worker.bit)
        self._store(worker, hashes)
        worker.epoch, worker.sequence = snapshot.epoch, snapshot.sequence
        return Applied.APPLIED

    def guess(self, worker_id: str, hashes: Iterable[bytes], expires_at: float) -> None:
        """A prompt was just placed on a worker, which will hold these blocks soon. `expires_at` must not decrease."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        for hash_ in hashes:
            worker.guessed[hash_] = expires_at
            self._holders[hash_] = self._holders.get(hash_, 0) | worker.bit
            self._guesses.append((expires_at, worker_id, hash_))

    def matches(self, hashes: Sequence[bytes], now: float) -> dict[str, int]:
        """How many leading blocks of a prompt each worker holds; workers with none are left out."""
        self._expire(now)
        matched: dict[str, int] = {}
        alive = self._live
        count = 0
        for holders in map(self._holders.get, hashes):
            still = alive & holders if holders is not None else 0
            if still != alive:
                if count:
                    self._note(matched, alive & ~still, count)
                alive = still
                if not alive:
                    return matched
            count += 1
        if count:
            self._note(matched, alive, count)
        return matched

    def check(self) -> None:
        """Assert that bits and sets say the same."""
        known = [*self._workers.values(), *self._gone]
        for worker in known:
            for hash_ in worker.stored | set(worker.guessed):
                assert self._holders[hash_] & worker.bit
        bits = sum(holders.bit_count() for holders in self._holders.values())
        assert bits == sum(len(worker.stored | set(worker.guessed)) for worker in known)
        assert len({worker.bit for worker in known}) == len(known)
        assert not {worker.bit for worker in known} & set(self._free_bits)

    def _note(self, matched: dict[str, int], bits: int, count: int) -> None:
        names = self._names
        while bits:
            bit = bits & -bits
            matched[names[bit.bit_length()]] = count
            bits ^= bit

    def _store(self, worker: _Worker, hashes: Iterable[bytes]) -> None:
        for hash_ in hashes:
            worker.stored.add(hash_)
            self._holders[hash_] = self._holders.get(hash_, 0) | worker.bit

    def _remove(self, worker: _Worker, hashes: Iterable[bytes]) -> None:
        """The worker itself says so: a guess ends with it."""
        for hash_ in hashes:
            worker.stored.discard(hash_)
            worker.guessed.pop(hash_, None)
            self._clear(hash_, worker.bit)

    def _clear(self, hash_: bytes, bit: int) -> None:
        holders = self._holders.get(hash_, 0) & ~bit
        if holders:
            self._holders[hash_] = holders
        else:
            self._holders.pop(hash_, None)

    def _expire(self, now: float) -> None:
        while self._guesses and self._guesses[0][0] <= now:
            _, worker_id, hash_ = self._guesses.popleft()
            worker = self._workers.get(worker_id)
            if worker is None or worker.guessed.get(hash_, now + 1) > now:
                continue  # it left, was confirmed gone, or was guessed again since
            del worker.guessed[hash_]
            if hash_ not in worker.stored:
                self._clear(hash_, worker.bit)
