"""A compact table from a block's index key to the set of its holders, as a mask of 64 bits. Works on whole arrays.

A key is in its bucket (`bucket_array`) or, when that was full, in a small dict: there is no probing. A key whose mask
becomes empty is freed at once. The table doubles at `MAX_LOAD`, so a key costs 16 bytes / load: 27 just before, 53 just
after.

Growth is spread over what follows. New keys go to the larger array at once; the old one is emptied into it bucket by
bucket, some with every `add` and `move_on`, and a key that is changed is moved first. Until then a look-up that does
not find everything in the new array asks the old one too, and a key costs up to 80 bytes.

Keys are odd 64-bit numbers (`kv_transfer.schema.index_keys`), uniformly distributed. Knows nothing about workers,
guesses or events.
"""

from __future__ import annotations

import numpy as np

from router.bucket_array import SLOTS, ZERO, BucketArray, Keys, Masks, Slots, some

MAX_LOAD = 0.6  # 2.4 % of the keys are then in the dict (Poisson: a bucket's share is 4.8 keys)
MIN_BUCKETS = 16
CHUNK = 1 << 16  # keys handled at once: bounds the temporaries of a big load at a few MB
MOVED_AT_ONCE = 1_024  # buckets of the old array, with every call that adds: some 0.4 ms
MOVED_PER_KEY = 0.25  # and more of them with many keys: all have moved before 4.8 keys a bucket have come
RETRIED_AT_ONCE = 1_024  # keys of the dict
STASH_SLACK = 64
BULK = 1_024  # keys above which np.isin is quicker than asking the dict for each


class HolderTable:
    def __init__(self) -> None:
        self._now = BucketArray(MIN_BUCKETS)
        self._old: BucketArray | None = None  # what `_now` grew from, while keys are left in it
        self._num_moved = 0  # of its buckets
        self._stash: dict[int, int] = {}  # key -> mask, of keys whose bucket was full
        self._stash_limit = STASH_SLACK
        self._to_retry: list[int] = []  # keys of it that may find room now

    def __len__(self) -> int:
        return self._now.num_keys + (0 if self._old is None else self._old.num_keys) + len(self._stash)

    @property
    def num_buckets(self) -> int:
        return len(self._now)

    @property
    def nbytes(self) -> int:
        """Of the arrays; the dict has about 130 bytes a key more."""
        return self._now.nbytes + (0 if self._old is None else self._old.nbytes)

    def find(self, keys: Keys) -> Masks:
        """The holders of each key, in the order given; an empty mask where a key is unknown."""
        slots, words = self._now.locate(keys)
        masks = self._now.masks.take(slots)
        absent = (words == ZERO).nonzero()[0]
        if absent.size:
            masks[absent] = self._find_old(keys.take(absent))
            for index, key in self._in_stash(keys, absent):
                masks[index] = self._stash[key]
        return masks

    def find_prefix(self, keys: Keys) -> Masks:
        """As `find`, but the answer may end before the first unknown key. There is at least one key."""
        slots, words = self._now.locate(keys)
        masks = self._now.masks.take(slots)
        first = words.argmin()
        if words.item(first):
            return masks
        if self._old is not None:
            return self.find(keys)
        if keys.item(first) not in self._stash:
            return masks[:first]
        for index in (words == ZERO).nonzero()[0].tolist():
            mask = self._stash.get(keys.item(index))
            if mask is None:
                return masks[:index]
            masks[index] = mask
        return masks

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
        return keys, np.concatenate([self._add(keys[part], some(bits, part)) for part in parts])

    def discard(self, keys: Keys, bits: np.uint64 | Masks) -> tuple[Keys, Masks]:
        """Clear bits; unknown keys are no error. Arguments as for `add`.

        Returns:
            The keys, sorted and distinct, and which of the bits each of them had.
        """
        if isinstance(bits, np.uint64):
            keys = distinct(keys)
        self._fetch(keys)
        slots, words = self._now.locate(keys)
        here = words.nonzero()[0]
        slots = slots.take(here)
        before = np.zeros(keys.size, np.uint64)
        before[here] = self._now.masks.take(slots)
        kept = (before & ~bits).take(here)
        self._now.masks[slots] = kept
        self._now.free(slots.compress(kept == ZERO))
        for index, key in self._in_stash(keys, (before == ZERO).nonzero()[0]):
            before[index] = mask = self._stash[key]
            self._restash(key, mask & ~int(some(bits, index)))
        return keys, before & bits

    def clear(self, bits: np.uint64, start: int = 0, stop: int | None = None) -> None:
        """Clear bits of all keys in a range of buckets; with the first bucket, also of those that are in none of them.

        O(buckets), some 10 ns each.
        """
        self._now.clear(bits, start, self.num_buckets if stop is None else stop)
        if start == 0:
            if self._old is not None:
                self._old.clear(bits, 0, len(self._old))
            for key, mask in list(self._stash.items()):
                self._restash(key, mask & ~int(bits))

    def with_bit(self, bit: np.uint64) -> Keys:
        """The keys that have a bit, in no particular order."""
        stashed = [key for key, mask in self._stash.items() if mask & int(bit)]
        arrays = [self._now] if self._old is None else [self._now, self._old]
        slotted = [array.keys.compress(array.masks & bit != 0) for array in arrays]
        return np.concatenate([*slotted, np.array(stashed, np.uint64)])

    def items(self) -> tuple[Keys, Masks]:
        """All keys, sorted, with their masks."""
        parts = [self._now.items(), self._stashed()]
        if self._old is not None:
            parts.append(self._old.items())
        keys, masks = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = keys.argsort()
        return keys.take(order), masks.take(order)

    def check(self) -> None:
        """Assert that every key is where it is looked for, once, and has a holder."""
        keys, masks = self.items()
        assert len(keys) == len(self) == len(set(keys.tolist()))
        assert bool((masks != 0).all())
        assert bool((self.find(keys) == masks).all())
        self._now.check()
        if self._old is not None:
            self._old.check()
            assert not self._old.keys[: self._num_moved * SLOTS].any(), "a key came back to a bucket that was moved"

    # --- growth ---------------------------------------------------------------------------------------------------

    def move_on(self, max_buckets: int) -> bool:
        """Go on with growing, so many buckets. False: that is done."""
        if self._old is None:
            return False
        end = min(self._num_moved + max_buckets, len(self._old))
        self._insert(*self._old.take_out(self._num_moved, end))
        self._num_moved = end
        if end == len(self._old):
            self._old = None
        return self._old is not None

    def _make_room(self, count: int) -> None:
        num_buckets = self.num_buckets
        while len(self) + count > MAX_LOAD * SLOTS * num_buckets:
            num_buckets *= 2
        if num_buckets == self.num_buckets:
            return
        if self._old is not None:  # a load so large that it could not keep up
            self.move_on(len(self._old))
        self._old, self._num_moved = self._now, 0
        self._now = BucketArray(num_buckets)
        self._to_retry, self._stash_limit = list(self._stash), 0
        self.move_on(MOVED_AT_ONCE)

    def _fetch(self, keys: Keys) -> None:
        """Move those of these sorted, distinct keys that are still in the old array."""
        if self._old is not None:
            slots, words = self._old.locate(keys)
            here = words.nonzero()[0]
            slots = slots.take(here)
            masks = self._old.masks.take(slots)
            self._old.masks[slots] = 0
            self._old.free(slots)
            self._insert(keys.take(here), masks)

    def _find_old(self, keys: Keys) -> Masks | np.uint64:
        """The holders of keys that have not moved; an empty mask for others."""
        if self._old is None:
            return np.uint64(0)
        slots, words = self._old.locate(keys)
        masks = self._old.masks.take(slots)
        masks[words == ZERO] = 0
        return masks

    # --- insides --------------------------------------------------------------------------------------------------

    def _add(self, keys: Keys, bits: np.uint64 | Masks) -> Masks:
        if self._old is not None:
            self._fetch(keys)
            self.move_on(max(MOVED_AT_ONCE, int(MOVED_PER_KEY * keys.size)))
        slots, words = self._now.locate(keys)
        here = words.nonzero()[0]
        slots = slots.take(here)
        before = np.zeros(keys.size, np.uint64)
        before[here] = known = self._now.masks.take(slots)
        self._now.masks[slots] = known | some(bits, here)
        if here.size < keys.size:
            for index, key in self._in_stash(keys, (before == ZERO).nonzero()[0]):
                before[index] = mask = self._stash[key]
                self._stash[key] = mask | int(some(bits, index))
            absent = (before == ZERO).nonzero()[0]
            self._make_room(absent.size)
            self._insert(keys.take(absent), some(bits, absent))
            if len(self._stash) > self._stash_limit:
                self._retry()
        return bits & ~before

    def _insert(self, keys: Keys, masks: np.uint64 | Masks) -> None:
        """Sorted, distinct, unknown keys: into their buckets, or aside."""
        keys, left = self._now.insert(keys, masks)
        if keys.size:
            self._stash.update(zip(keys.tolist(), left.tolist(), strict=True))

    def _in_stash(self, keys: Keys, absent: Slots) -> list[tuple[int, int]]:
        """Which of the keys at these positions are in the dict: (position, key)."""
        if not self._stash or not absent.size:
            return []
        if absent.size > BULK:
            absent = absent.compress(np.isin(keys.take(absent), self._stashed()[0]))
        among = keys.take(absent).tolist()
        if self._stash.keys().isdisjoint(among):
            return []
        return [(index, key) for index, key in zip(absent.tolist(), among, strict=True) if key in self._stash]

    def _stashed(self) -> tuple[Keys, Masks]:
        size = len(self._stash)
        return np.fromiter(self._stash, np.uint64, size), np.fromiter(self._stash.values(), np.uint64, size)

    def _restash(self, key: int, mask: int) -> None:
        if mask:
            self._stash[key] = mask
        else:
            self._stash.pop(key, None)

    def _retry(self) -> None:
        """Buckets lose keys with time, or are new: try again to put the dict's keys into them, some at a time."""
        if not self._to_retry:
            self._to_retry = list(self._stash)
        found = {key: self._stash.pop(key) for key in self._to_retry[-RETRIED_AT_ONCE:] if key in self._stash}
        del self._to_retry[-RETRIED_AT_ONCE:]
        keys = np.fromiter(found, np.uint64, len(found))
        order = keys.argsort()
        self._insert(keys.take(order), np.fromiter(found.values(), np.uint64, len(found)).take(order))
        self._stash_limit = 0 if self._to_retry else 2 * len(self._stash) + STASH_SLACK


def distinct(keys: Keys) -> Keys:
    """The same keys, sorted, each once."""
    keys = np.sort(keys)
    if keys.size > 1:
        new = keys[1:] != keys[:-1]
        if not new.all():
            return keys.compress(np.concatenate([[True], new]))
    return keys
