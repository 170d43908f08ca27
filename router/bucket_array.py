"""Keys and their masks in buckets of eight, in NumPy arrays: the part of `holder_table` that every look-up reads.

    bucket = top bits of the key      8 keys, one cache line      8 masks
    ┌──────────────────────────┐     ┌──┬──┬──┬──┬──┬──┬──┬──┐    ┌──┬──┬──┬──┬──┬──┬──┬──┐
    │ key >> shift             │ ──▶ │k0│k1│0 │k3│..│  │  │  │    │m0│m1│  │m3│..│  │  │  │
    └──────────────────────────┘     └──┴──┴──┴──┴──┴──┴──┴──┘    └──┴──┴──┴──┴──┴──┴──┴──┘

Looking up any number of keys is one gather and one comparison, half a dozen NumPy calls whatever the number. What a
match does is spelled so that NumPy finds nothing to convert: constants are arrays without dimensions and types are
dtypes (making one of a scalar or a class takes 0.1 to 0.5 µs, as long as an operation on 160 keys), and functions are
called rather than operators.

Knows nothing about keys that find no room, growth, workers or what a mask means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy import add, equal, left_shift, multiply, right_shift

Keys = npt.NDArray[np.uint64]  # odd numbers; 0 marks a free slot
Masks = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

INT64 = np.dtype(np.int64)
UINT64 = np.dtype(np.uint64)
SLOTS = 8  # keys a bucket
SLOT_BITS = np.array(3)
ZERO = np.array(0, np.uint64)
COLUMNS = np.array(0x0001020304050607, np.uint64)  # times 256**column has `column` as its highest byte
LAST_BYTE = np.array(56, np.uint64)
NO_KEYS: Keys = np.array([], np.uint64)


class BucketArray:
    def __init__(self, num_buckets: int) -> None:
        """
        Args:
            num_buckets: a power of two.
        """
        self.keys: Keys = np.zeros(num_buckets * SLOTS, np.uint64)
        self.masks: Masks = np.zeros(num_buckets * SLOTS, np.uint64)
        self.num_keys = 0
        self._rows = self.keys.reshape(num_buckets, SLOTS)  # the same memory
        self._shift = np.array(65 - num_buckets.bit_length(), np.uint64)

    def __len__(self) -> int:
        """Number of buckets."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.masks.nbytes

    def locate(self, keys: Keys) -> tuple[Slots, Words]:
        """The slot of every key that is here; and a word a key that is 0 if it is not (and its slot wrong)."""
        buckets: Slots = right_shift(keys, self._shift).view(INT64)
        words: Words = equal(self._rows.take(buckets, 0), keys[:, None]).view(UINT64).ravel()  # one byte of eight is 1
        multiply(words, COLUMNS, words)  # the highest byte is the column now, and 0 is still 0
        left_shift(buckets, SLOT_BITS, buckets)
        add(buckets, right_shift(words, LAST_BYTE).view(INT64), buckets)
        return buckets, words

    def insert(self, keys: Keys, masks: np.uint64 | Masks) -> tuple[Keys, Masks]:
        """Put sorted, distinct, unknown keys into their buckets, one a bucket and round. Returns those without room."""
        full_keys, full_masks = [NO_KEYS], [NO_KEYS]
        while keys.size:
            buckets: Slots = (keys >> self._shift).view(np.int64)
            again = buckets[1:] == buckets[:-1]
            if again.any():
                later = np.concatenate([[False], again])
                rest, rest_masks = keys.compress(later), some(masks, later)
                first = ~later
                keys, masks, buckets = keys.compress(first), some(masks, first), buckets.compress(first)
            else:
                rest, rest_masks = keys[:0], masks
            slots = (buckets << SLOT_BITS) + (self._rows.take(buckets, 0) == ZERO).argmax(1)
            room = self.keys.take(slots) == ZERO
            if not room.all():
                full = ~room
                full_keys.append(keys.compress(full))
                full_masks.append(np.broadcast_to(masks, keys.shape).compress(full))
                keys, masks, slots = keys.compress(room), some(masks, room), slots.compress(room)
            self.keys[slots] = keys
            self.masks[slots] = masks
            self.num_keys += keys.size
            keys, masks = rest, rest_masks
        return np.concatenate(full_keys), np.concatenate(full_masks)

    def free(self, slots: Slots) -> None:
        """Their masks are of no account from now on."""
        self.keys[slots] = 0
        self.num_keys -= slots.size

    def take_out(self, start: int, stop: int) -> tuple[Keys, Masks]:
        """What is in these buckets, sorted by key; then it is here no more."""
        used = self.keys[start * SLOTS : stop * SLOTS].nonzero()[0] + start * SLOTS
        keys, masks = self.keys.take(used), self.masks.take(used)
        self.masks[used] = 0
        self.free(used)
        order = keys.argsort()
        return keys.take(order), masks.take(order)

    def clear(self, bits: np.uint64, start: int, stop: int) -> None:
        """Clear bits in a range of buckets. Some 10 ns a bucket."""
        masks = self.masks[start * SLOTS : stop * SLOTS]
        held = (masks & bits).nonzero()[0]
        masks[held] &= ~bits
        self.free(held.compress(masks.take(held) == ZERO) + start * SLOTS)

    def items(self) -> tuple[Keys, Masks]:
        """In no particular order."""
        used = self.keys.nonzero()[0]
        return self.keys.take(used), self.masks.take(used)

    def check(self) -> None:
        """Assert that what is counted is here and has holders."""
        assert self.num_keys == np.count_nonzero(self.keys)
        assert bool(((self.keys == 0) == (self.masks == 0)).all()), "a free slot has holders, or a key has none"


def some(bits: np.uint64 | Masks, which: Any) -> Any:
    """`bits[which]`, where one mask may stand for all."""
    return bits if isinstance(bits, np.uint64) else bits[which]
