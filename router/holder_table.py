"""A compact table from a block's index key to the set of its holders, as a mask of 64 bits. Works on whole arrays.

    bucket = top bits of the key      8 keys, one cache line      8 masks
    ┌──────────────────────────┐     ┌──┬──┬──┬──┬──┬──┬──┬──┐    ┌──┬──┬──┬──┬──┬──┬──┬──┐
    │ key >> shift             │ ──▶ │k0│k1│0 │k3│..│  │  │  │    │m0│m1│  │m3│..│  │  │  │
    └──────────────────────────┘     └──┴──┴──┴──┴──┴──┴──┴──┘    └──┴──┴──┴──┴──┴──┴──┴──┘

A key is in its bucket or, when that was full, in a small dict, so looking up any number of keys is one gather and one
comparison: no probing, and half a dozen NumPy calls whatever the number. A key whose mask becomes empty is freed at
once. The table doubles at `MAX_LOAD`, so a key costs 16 bytes / load: 27 just before, 53 just after.

Keys are odd 64-bit numbers (`kv_transfer.schema.index_keys`), uniformly distributed; 0 marks a free slot. Knows nothing
about workers, guesses or events.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Masks = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

SLOTS = 8  # keys a bucket
SLOT_BITS = 3
MAX_LOAD = 0.6  # 2.4 % of the keys are then in the dict (Poisson: a bucket's share is 4.8 keys)
MIN_BUCKETS = 16
CHUNK = 1 << 16  # keys handled at once: bounds the temporaries of a big load at a few MB
STASH_SLACK = 64
COLUMNS = np.uint64(0x0001020304050607)  # times 256**column has `column` as its highest byte
LAST_BYTE = np.uint64(56)
NOWHERE = np.array([], np.int64)
BULK = 1_024  # keys above which np.isin is quicker than asking the dict for each


class HolderTable:
    def __init__(self) -> None:
        self._stash: dict[int, int] = {}  # key -> mask, of keys whose bucket was full
        self._stash_limit = STASH_SLACK
        self._num_slotted = 0
        self._allocate(MIN_BUCKETS)

    def __len__(self) -> int:
        return self._num_slotted + len(self._stash)

    @property
    def num_buckets(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Of the arrays; the dict has about 130 bytes a key more."""
        return self._keys.nbytes + self._masks.nbytes

    def find(self, keys: Keys) -> Masks:
        """The holders of each key, in the order given; an empty mask where a key is unknown."""
        found, absent = self._find(keys)
        for index, key in self._in_stash(keys, absent):
            found[index] = self._stash[key]
        return found

    def find_prefix(self, keys: Keys) -> Masks:
        """As `find`, but nothing behind the first unknown key is told: it may be given as empty."""
        found, absent = self._find(keys)
        if self._stash:
            for index in absent.tolist():
                mask = self._stash.get(int(keys[index]))
                if mask is None:
                    break
                found[index] = mask
        return found

    def add(self, keys: Keys, bits: np.uint64 | Masks) -> tuple[Keys, Masks]:
        """Set bits, inserting keys that are new.

        Args:
            bits: for all keys alike; or one mask a key, and then the keys must be sorted and distinct.

        Returns:
            The keys, sorted and distinct, and which of the bits each of them lacked.
        """
        if isinstance(bits, np.uint64):
            keys = distinct(keys)
        if keys.size <= CHUNK:
            return keys, self._add(keys, bits)
        parts = [slice(start, start + CHUNK) for start in range(0, keys.size, CHUNK)]
        return keys, np.concatenate([self._add(keys[part], _some(bits, part)) for part in parts])

    def discard(self, keys: Keys, bits: np.uint64 | Masks) -> tuple[Keys, Masks]:
        """Clear bits; unknown keys are no error. Arguments as for `add`.

        Returns:
            The keys, sorted and distinct, and which of the bits each of them had.
        """
        if isinstance(bits, np.uint64):
            keys = distinct(keys)
        slots, words = self._locate(keys)
        here = words.nonzero()[0]
        slots = slots.take(here)
        before = np.zeros(keys.size, np.uint64)
        before[here] = self._masks.take(slots)
        kept = (before & ~bits).take(here)
        self._masks[slots] = kept
        self._free(slots.compress(kept == 0))
        for index, key in self._in_stash(keys, (before == 0).nonzero()[0]):
            before[index] = mask = self._stash[key]
            self._restash(key, mask & ~int(_some(bits, index)))
        return keys, before & bits

    def clear(self, bits: np.uint64, start: int = 0, stop: int | None = None) -> None:
        """Clear bits of all keys in a range of buckets; with the first bucket, also of those in the dict.

        O(buckets), some 10 ns each.
        """
        at = slice(start * SLOTS, None if stop is None else stop * SLOTS)
        masks = self._masks[at]
        held = (masks & bits).nonzero()[0]
        masks[held] &= ~bits
        self._free(held.compress(masks.take(held) == 0) + start * SLOTS)
        if start == 0:
            for key, mask in list(self._stash.items()):
                self._restash(key, mask & ~int(bits))

    def with_bit(self, bit: np.uint64) -> Keys:
        """The keys that have a bit, in no particular order."""
        stashed = [key for key, mask in self._stash.items() if mask & int(bit)]
        return np.concatenate([self._keys.compress(self._masks & bit != 0), np.array(stashed, np.uint64)])

    def items(self) -> tuple[Keys, Masks]:
        """All keys, sorted, with their masks."""
        used = self._keys.nonzero()[0]
        keys = np.concatenate([self._keys.take(used), np.fromiter(self._stash, np.uint64)])
        masks = np.concatenate([self._masks.take(used), np.fromiter(self._stash.values(), np.uint64)])
        order = keys.argsort()
        return keys.take(order), masks.take(order)

    def check(self) -> None:
        """Assert that every key is where it is looked for, once, and has a holder."""
        keys, masks = self.items()
        assert len(keys) == len(self) == len(set(keys.tolist()))
        assert bool((masks != 0).all())
        assert bool(((self._keys == 0) <= (self._masks == 0)).all()), "a free slot has holders"
        assert bool((self.find(keys) == masks).all())

    # --- insides --------------------------------------------------------------------------------------------------

    def _allocate(self, num_buckets: int) -> None:
        self._keys: Keys = np.zeros(num_buckets * SLOTS, np.uint64)
        self._masks: Masks = np.zeros(num_buckets * SLOTS, np.uint64)
        self._rows = self._keys.reshape(num_buckets, SLOTS)  # the same memory
        self._shift = np.uint64(65 - num_buckets.bit_length())
        self._num_slotted = 0

    def _locate(self, keys: Keys) -> tuple[Slots, Words]:
        """The slot of every key that is in its bucket; and a word a key that is 0 if it is not (and its slot wrong)."""
        buckets: Slots = (keys >> self._shift).view(np.int64)
        words: Words = (self._rows.take(buckets, 0) == keys[:, None]).view(np.uint64).ravel()  # one byte of eight is 1
        words *= COLUMNS  # the highest byte is the column now, and 0 is still 0
        buckets <<= SLOT_BITS
        buckets += (words >> LAST_BYTE).view(np.int64)
        return buckets, words

    def _find(self, keys: Keys) -> tuple[Masks, Slots]:
        """Holders as far as buckets know, and the positions of the keys that are not in their bucket."""
        slots, words = self._locate(keys)
        masks = self._masks.take(slots)
        if np.count_nonzero(words) == keys.size:
            return masks, NOWHERE
        absent = (words == 0).nonzero()[0]
        masks[absent] = 0
        return masks, absent

    def _add(self, keys: Keys, bits: np.uint64 | Masks) -> Masks:
        slots, words = self._locate(keys)
        here = words.nonzero()[0]
        slots = slots.take(here)
        before = np.zeros(keys.size, np.uint64)
        before[here] = known = self._masks.take(slots)
        self._masks[slots] = known | _some(bits, here)
        if here.size < keys.size:
            for index, key in self._in_stash(keys, (before == 0).nonzero()[0]):
                before[index] = mask = self._stash[key]
                self._stash[key] = mask | int(_some(bits, index))
            absent = (before == 0).nonzero()[0]
            self._make_room(absent.size)
            self._insert(keys.take(absent), _some(bits, absent))
            if len(self._stash) > self._stash_limit:
                self._drain_stash()
        return bits & ~before

    def _in_stash(self, keys: Keys, absent: Slots) -> list[tuple[int, int]]:
        """Which of the keys at these positions are in the dict: (position, key)."""
        if not self._stash or not absent.size:
            return []
        if absent.size > BULK:
            stashed = np.fromiter(self._stash, np.uint64, len(self._stash))
            absent = absent.compress(np.isin(keys.take(absent), stashed))
        among = keys.take(absent).tolist()
        if self._stash.keys().isdisjoint(among):
            return []
        return [(index, key) for index, key in zip(absent.tolist(), among, strict=True) if key in self._stash]

    def _insert(self, keys: Keys, masks: np.uint64 | Masks) -> None:
        """Put sorted, distinct, unknown keys into their buckets, one a bucket and round; what finds no room, aside."""
        while keys.size:
            buckets: Slots = (keys >> self._shift).view(np.int64)
            again = buckets[1:] == buckets[:-1]
            if again.any():
                later = np.concatenate([[False], again])
                rest, rest_masks = keys.compress(later), _some(masks, later)
                first = ~later
                keys, masks, buckets = keys.compress(first), _some(masks, first), buckets.compress(first)
            else:
                rest, rest_masks = keys[:0], masks
            slots = (buckets << SLOT_BITS) + (self._rows.take(buckets, 0) == 0).argmax(1)
            room = self._keys.take(slots) == 0
            if not room.all():
                full = ~room
                self._stash.update(
                    zip(keys[full].tolist(), np.broadcast_to(masks, keys.shape)[full].tolist(), strict=True)
                )
                keys, masks, slots = keys.compress(room), _some(masks, room), slots.compress(room)
            self._keys[slots] = keys
            self._masks[slots] = masks
            self._num_slotted += keys.size
            keys, masks = rest, rest_masks

    def _free(self, slots: Slots) -> None:
        self._keys[slots] = 0
        self._num_slotted -= slots.size

    def _restash(self, key: int, mask: int) -> None:
        if mask:
            self._stash[key] = mask
        else:
            self._stash.pop(key, None)

    def _make_room(self, count: int) -> None:
        num_buckets = self.num_buckets
        while len(self) + count > MAX_LOAD * SLOTS * num_buckets:
            num_buckets *= 2
        if num_buckets > self.num_buckets:
            keys, masks = self.items()
            self._stash.clear()
            self._allocate(num_buckets)
            for at in range(0, keys.size, CHUNK):
                self._insert(keys[at : at + CHUNK], masks[at : at + CHUNK])
            self._stash_limit = 2 * len(self._stash) + STASH_SLACK

    def _drain_stash(self) -> None:
        """Buckets lose keys with time: try again to put the dict's keys into them."""
        order = sorted(self._stash)
        masks = np.array([self._stash[key] for key in order], np.uint64)
        self._stash.clear()
        self._insert(np.array(order, np.uint64), masks)
        self._stash_limit = 2 * len(self._stash) + STASH_SLACK


def _some(bits: np.uint64 | Masks, which: Any) -> Any:
    """`bits[which]`, where one mask may stand for all."""
    return bits if isinstance(bits, np.uint64) else bits[which]


def distinct(keys: Keys) -> Keys:
    """The same keys, sorted, each once."""
    keys = np.sort(keys)
    if keys.size > 1:
        new = keys[1:] != keys[:-1]
        if not new.all():
            return keys.compress(np.concatenate([[True], new]))
    return keys
