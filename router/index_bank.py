"""What up to 64 workers hold, one bit each, and what the router guesses that they will hold soon.

`held` has everything a match may use: what workers said and what was guessed. The guesses that no worker has confirmed
yet are noted once more, in two generations: new ones go to the young generation, and when the old one expires the young
one becomes old. So a guess lasts at least as long as asked and at most twice that, and costs two array operations
instead of a timer a block.

Works on index keys (`kv_transfer.schema.index_keys`). Knows nothing about epochs, events or clocks.
"""

from __future__ import annotations

from math import inf

import numpy as np
import numpy.typing as npt
from numpy import bitwise_xor

from router.bucket_array import INT64, Keys, Masks, Slots
from router.holder_table import HolderTable

BITS = 64
BOOL = np.dtype(np.bool_)
UINT8 = np.dtype(np.uint8)
BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=UINT8)[:, None], axis=1, bitorder="little").astype(np.float32)
accumulate_and = np.bitwise_and.accumulate
FEW = 10  # different lengths that are quicker to name one by one
MAX_SETS = 1_024  # sets of workers whose names are remembered


class IndexBank:
    def __init__(self) -> None:
        self.held = HolderTable()
        self._names = [""] * BITS  # of the workers that have not left, by the number of their bit
        self._here: list[str] = []  # those names
        self._columns: Slots = np.array([], np.int64)  # and their numbers
        self._nothing: dict[str, int] = {}  # 0 for each of them
        self._everybody = 0  # their bits
        self._lengths: npt.NDArray[np.float32] = np.array([], np.float32)  # 1, 2, 3, ...
        self._sets: dict[int, list[str]] = {}  # names by mask: a cache
        self._free = list(reversed(range(BITS)))  # numbers of clean bits
        self._live = np.uint64(0)
        self._dirty = 0  # bits of workers that left, still set in the tables
        self._young = HolderTable()  # guesses
        self._old = HolderTable()
        self._young_until = -inf  # when the last of them expires
        self._old_until = -inf
        self._due = inf  # when `expire` has something to do
        self._sweeping = 0  # the dirty bits of the pass under way
        self._swept = 0  # buckets it has done
        self._pass_buckets = 0

    def __len__(self) -> int:
        return len(self.held)

    @property
    def nbytes(self) -> int:
        return self.held.nbytes + self._young.nbytes + self._old.nbytes

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    # --- who is here ----------------------------------------------------------------------------------------------

    def join(self, worker_id: str) -> np.uint64:
        """A clean bit for a worker."""
        number = self._free.pop()
        bit = np.uint64(1 << number)
        self._names[number] = worker_id
        self._live |= bit
        self._list_names()
        return bit

    def leave(self, bit: np.uint64) -> None:
        """Nothing of this worker matches from now on. O(1), whatever it held."""
        self._names[int(bit).bit_length() - 1] = ""
        self._sets.clear()
        self._live &= ~bit
        self._dirty |= int(bit)
        self._list_names()

    def _list_names(self) -> None:
        self._columns = np.array([number for number in range(BITS) if self._names[number]], np.int64)
        self._here = [name for name in self._names if name]
        self._nothing = dict.fromkeys(self._here, 0)
        self._everybody = int(self._live)

    def sweep(self, max_buckets: int) -> bool:
        """Go on with growing, then clean up after workers that left, so many buckets at most. False: all is done."""
        if self.held.move_on(max_buckets):
            return True
        if not self._dirty:
            return False
        if not self._sweeping or self._pass_buckets != self.held.num_buckets:  # or the table has grown: keys moved
            self._sweeping, self._swept, self._pass_buckets = self._dirty, 0, self.held.num_buckets
            self._young.clear(np.uint64(self._sweeping))
            self._old.clear(np.uint64(self._sweeping))
        end = min(self._swept + max_buckets, self._pass_buckets)
        self.held.clear(np.uint64(self._sweeping), self._swept, end)
        self._swept = end
        if end == self._pass_buckets:
            self._free += [number for number in range(BITS) if self._sweeping >> number & 1]
            self._dirty &= ~self._sweeping
            self._sweeping = 0
        return bool(self._dirty)

    # --- what a worker says ---------------------------------------------------------------------------------------

    def store(self, bit: np.uint64, keys: Keys) -> Keys:
        """The worker holds these; returns those that it was not known to hold. A guess ends by being confirmed."""
        keys, lacked = self.held.add(keys, bit)
        news = keys.compress(lacked != 0)
        if confirmed := self._forget_guesses(keys, bit):
            news = np.concatenate([news, *confirmed])
        return news

    def remove(self, bit: np.uint64, keys: Keys) -> Keys:
        """The worker no longer holds these; returns those that it was known to hold. Guesses end too."""
        keys, had = self.held.discard(keys, bit)
        gone = keys.compress(had != 0)
        for guessed in self._forget_guesses(gone, bit):
            gone = np.setdiff1d(gone, guessed, assume_unique=True)
        return gone

    def clear(self, bit: np.uint64) -> None:
        """The worker holds nothing. Guesses end too. O(buckets)."""
        for table in (self.held, self._young, self._old):
            table.clear(bit)

    def replace(self, bit: np.uint64, keys: Keys) -> int:
        """The worker holds exactly these. Other guesses stay. Returns how many it was known to hold. O(buckets)."""
        guesses = np.concatenate([self._young.with_bit(bit), self._old.with_bit(bit)])
        known = np.count_nonzero(self.held.find(keys) & bit) - np.isin(guesses, keys).sum()
        self.held.clear(bit)
        self.held.add(guesses, bit)
        self.store(bit, keys)
        return int(known)

    def stored(self, bit: np.uint64) -> Keys:
        """What the worker said it holds, in no particular order. O(buckets)."""
        guesses = np.concatenate([self._young.with_bit(bit), self._old.with_bit(bit)])
        return np.setdiff1d(self.held.with_bit(bit), guesses, assume_unique=True)

    # --- what the router guesses ----------------------------------------------------------------------------------

    def guess(self, bits: np.uint64, keys: Keys, expires_at: float) -> None:
        """The workers will hold these soon, or will not: then they are forgotten after `expires_at`."""
        keys, lacked = self.held.add(keys, bits)
        if len(self._old):
            keys, renewed = self._old.discard(keys, bits)
            lacked = lacked | renewed
        new = lacked != 0
        self._young.add(keys.compress(new), lacked.compress(new))
        self._young_until = max(self._young_until, expires_at)
        self._due = self._old_until

    def expire(self, now: float) -> None:
        """Forget guesses that were not confirmed in time."""
        while now >= self._old_until and (len(self._old) or len(self._young)):
            self.held.discard(*self._old.items())
            self._old, self._old_until = self._young, self._young_until
            self._young = HolderTable()
        self._due = self._old_until if len(self._old) or len(self._young) else inf

    def _forget_guesses(self, keys: Keys, bit: np.uint64) -> list[Keys]:
        """End the guesses among these keys; returns them."""
        ended = []
        for table in (self._young, self._old):
            if len(table):
                guessed, had = table.discard(keys, bit)
                ended.append(guessed.compress(had != 0))
        return ended

    # --- matching -------------------------------------------------------------------------------------------------

    def count_leading(self, keys: Keys, now: float) -> dict[str, int]:
        """How many of the first keys each worker holds without a hole; workers with none are left out.

        There is at least one key.
        """
        if now >= self._due:
            self.expire(now)
        masks = self.held.find_prefix(keys)
        if not masks.size:
            return {}
        if self._dirty:
            masks &= self._live
        held = accumulate_and(masks)  # who holds all keys up to here
        lost = bitwise_xor(held[:-1], held[1:])  # who holds this one and not the next: everybody in one row at most
        rows = lost.astype(BOOL).nonzero()[0]
        lost = lost.take(rows)
        if rows.size > FEW:
            matched = self._name_many(lost, rows, masks)
        else:
            matched = {}
            for mask, row in zip(lost.tolist(), rows.tolist(), strict=True):
                matched.update(dict.fromkeys(self._sets.get(mask) or self._name(mask), row + 1))
        if last := held.item(-1):
            matched.update(dict.fromkeys(self._sets.get(last) or self._name(last), masks.size))
        return matched

    def _name_many(self, lost: Masks, rows: Slots, masks: Masks) -> dict[str, int]:
        """The number of each worker's only row, as one product of a vector and a matrix."""
        if masks.size > self._lengths.size:
            self._lengths = np.arange(1, 2 * masks.size, dtype=np.float32)  # exact up to 2**24
        bits = BITS_OF_BYTE.take(lost.view(UINT8), 0).reshape(-1, BITS)
        counts = self._lengths.take(rows).dot(bits).astype(INT64)
        if len(self._here) < BITS:
            counts = counts.take(self._columns)
        matched = self._nothing.copy()  # quicker to fill than a new one
        matched.update(zip(self._here, counts.tolist()))  # noqa: B905 (as many; a keyword takes 0.2 µs)
        if masks.item(0) == self._everybody:
            return matched
        return {name: count for name, count in matched.items() if count}

    def _name(self, mask: int) -> list[str]:
        named = [self._names[number] for number in range(BITS) if mask >> number & 1]
        if len(self._sets) < MAX_SETS:
            self._sets[mask] = named
        return named

    def check(self) -> None:
        """Assert what holds between the tables. O(buckets)."""
        for table in (self.held, self._young, self._old):
            table.check()
        known = self._live | np.uint64(self._dirty)
        keys, masks = self.held.items()
        assert not (masks & ~known).any(), "a holder that is no worker"
        for guesses in (self._young, self._old):
            guessed, bits = guesses.items()
            assert not (bits & ~self.held.find(guessed)).any(), "a guess that no match would find"
        assert not (self._old.find(keys) & self._young.find(keys)).any(), "a guess in both generations"
        free = sum(1 << number for number in self._free)
        assert not self._dirty & int(self._live), "a worker on a dirty bit"
        assert int(self._live) | self._dirty | free == 2**BITS - 1, "a bit was lost"
        assert all(bool(name) == bool(int(self._live) >> number & 1) for number, name in enumerate(self._names))
