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

from router.holder_table import HolderTable, Keys

BITS = 64
FEW = 10  # different lengths that are quicker to name one by one
MAX_SETS = 1_024  # sets of workers whose names are remembered


class IndexBank:
    def __init__(self) -> None:
        self.held = HolderTable()
        self._names = [""] * BITS  # of the workers that have not left, by the number of their bit
        self._sets: dict[int, list[str]] = {}  # names by mask: a cache
        self._free = list(reversed(range(BITS)))  # numbers of clean bits
        self._live = np.uint64(0)
        self._dirty = 0  # bits of workers that left, still set in the tables
        self._young = HolderTable()  # guesses
        self._old = HolderTable()
        self._young_until = -inf  # when the last of them expires
        self._old_until = -inf
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
        return bit

    def leave(self, bit: np.uint64) -> None:
        """Nothing of this worker matches from now on. O(1), whatever it held."""
        self._names[int(bit).bit_length() - 1] = ""
        self._sets.clear()
        self._live &= ~bit
        self._dirty |= int(bit)

    def sweep(self, max_buckets: int) -> bool:
        """Clean up after workers that left, so many buckets at most. False: all is clean."""
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

    def expire(self, now: float) -> None:
        """Forget guesses that were not confirmed in time."""
        while now >= self._old_until and (len(self._old) or len(self._young)):
            self.held.discard(*self._old.items())
            self._old, self._old_until = self._young, self._young_until
            self._young = HolderTable()

    def _forget_guesses(self, keys: Keys, bit: np.uint64) -> list[Keys]:
        """End the guesses among these keys; returns them."""
        ended = []
        for table in (self._young, self._old):
            if len(table):
                guessed, had = table.discard(keys, bit)
                ended.append(guessed.compress(had != 0))
        return ended

    # --- matching -------------------------------------------------------------------------------------------------

    def count_leading(self, keys: Keys) -> dict[str, int]:
        """How many of the first keys each worker holds without a hole; workers with none are left out."""
        masks = self.held.find_prefix(keys)
        if self._dirty:
            masks = masks & self._live
        lost = np.bitwise_and.accumulate(masks)  # who holds all keys up to here
        lost[:-1] ^= lost[1:]  # who holds this one and not the next: everybody in one row at most
        rows = (lost != 0).nonzero()[0]
        if rows.size <= FEW:
            few: dict[str, int] = {}
            for mask, end in zip(lost.take(rows).tolist(), (rows + 1).tolist(), strict=True):
                few.update(dict.fromkeys(self._sets.get(mask) or self._name(mask), end))
            return few
        bits = np.unpackbits(lost.take(rows).view(np.uint8), bitorder="little").reshape(-1, BITS)
        ends = (rows + 1).astype(np.float32)  # exact up to 2**24, and quicker than whole numbers
        counts = ends.dot(bits).astype(np.int64).tolist()
        if 0 in counts:
            return {name: count for name, count in zip(self._names, counts, strict=True) if count}
        return dict(zip(self._names, counts, strict=True))

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
