"""The table against a dict of sets; small keys collide in buckets far more often than hashes do."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from router import holder_table
from router.bucket_array import SLOTS, Keys
from router.holder_table import CHUNK, MIN_BUCKETS, HolderTable, distinct

MANY = MIN_BUCKETS * SLOTS * 5  # grows twice
BITS = [np.uint64(1 << index) for index in (0, 1, 63)]


def keys_of(numbers: list[int]) -> Keys:
    return np.array([number << 58 | number << 1 | 1 for number in numbers], np.uint64)  # few buckets, many keys


numbers = st.lists(st.integers(0, 63), max_size=40)
operations = st.lists(st.tuples(st.sampled_from(["add", "discard", "clear", "part"]), st.integers(0, 2), numbers))


@given(operations)
def test_it_is_a_dict_of_sets(done: list[tuple[str, int, list[int]]]) -> None:
    table, model = HolderTable(), dict[int, int]()
    for name, which, some in done:
        keys, bit = keys_of(some), BITS[which]
        if name == "add":
            given_keys, lacked = table.add(keys, bit)
            for key, mask in zip(given_keys.tolist(), lacked.tolist(), strict=True):
                assert mask == int(bit) & ~model.get(key, 0)
                model[key] = model.get(key, 0) | int(bit)
        elif name == "discard":
            given_keys, had = table.discard(keys, bit)
            for key, mask in zip(given_keys.tolist(), had.tolist(), strict=True):
                assert mask == int(bit) & model.get(key, 0)
                model[key] = model.get(key, 0) & ~int(bit)
        else:
            half = table.num_buckets // 2
            table.clear(bit, 0, half if name == "part" else None)
            if name == "part":
                table.clear(bit, half, table.num_buckets)
            model = {key: mask & ~int(bit) for key, mask in model.items()}
        model = {key: mask for key, mask in model.items() if mask}
        assert dict(zip(*(part.tolist() for part in table.items()), strict=True)) == model
        table.check()
        assert table.find(keys).tolist() == [model.get(key, 0) for key in keys.tolist()]


def test_more_keys_than_one_bucket_holds_are_kept_beside_it_and_return() -> None:
    table = HolderTable()
    same_bucket = np.arange(1, 4 * SLOTS, 2, dtype=np.uint64)
    table.add(same_bucket, BITS[0])
    table.check()
    assert len(table) == 2 * SLOTS
    assert table.find(same_bucket).tolist() == [1] * (2 * SLOTS)
    assert table.find_prefix(np.append(same_bucket, np.uint64(999))).tolist() == [1] * (2 * SLOTS)
    assert table.find_prefix(np.insert(same_bucket, 3, np.uint64(999))).tolist()[:4] in ([1] * 3, [1] * 3 + [0])
    table.discard(same_bucket[:SLOTS], BITS[0])
    more = np.arange(2**60 + 1, 2**60 + 400, 2, dtype=np.uint64)
    table.add(more, BITS[1])
    assert table.find(same_bucket).tolist() == [0] * SLOTS + [1] * SLOTS
    table.check()


def test_it_grows_and_takes_one_mask_a_key() -> None:
    table, random = HolderTable(), np.random.default_rng(0)
    keys = distinct(random.integers(0, 2**64, MANY, dtype=np.uint64) | np.uint64(1))
    masks = random.integers(1, 2**64, keys.size, dtype=np.uint64)
    _, lacked = table.add(keys, masks)
    assert (lacked == masks).all()
    assert table.num_buckets > MIN_BUCKETS
    assert (table.find(keys[::-1]) == masks[::-1]).all()
    _, had = table.discard(keys, masks & np.uint64(0xFF))
    assert (had == masks & np.uint64(0xFF)).all()
    table.check()


spans = st.tuples(st.integers(0, 900), st.integers(0, 120))


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "discard", "clear", "move"]), st.integers(0, 2), spans)))
def test_it_is_a_dict_of_sets_while_it_grows_bucket_by_bucket(done: list[tuple[str, int, tuple[int, int]]]) -> None:
    table, model = HolderTable(), dict[int, int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder_table, "MOVED_AT_ONCE", 1)
        patch.setattr(holder_table, "MOVED_PER_KEY", 0.0)
        for name, which, (start, count) in done:
            spread = np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
            keys, bit = distinct(spread), BITS[which]
            if name == "add":
                lacked = table.add(keys, bit)[1].tolist()
                assert lacked == [int(bit) & ~model.get(key, 0) for key in keys.tolist()]
                model |= {key: model.get(key, 0) | int(bit) for key in keys.tolist()}
            elif name == "discard":
                had = table.discard(keys, bit)[1].tolist()
                assert had == [int(bit) & model.get(key, 0) for key in keys.tolist()]
                model |= {key: model.get(key, 0) & ~int(bit) for key in keys.tolist()}
            elif name == "clear":
                table.clear(bit)
                model = {key: mask & ~int(bit) for key, mask in model.items()}
            else:
                table.move_on(3)
            model = {key: mask for key, mask in model.items() if mask}
            table.check()
            assert dict(zip(*(part.tolist() for part in table.items()), strict=True)) == model
            assert table.find(keys).tolist() == [model.get(key, 0) for key in keys.tolist()]
            assert set(table.with_bit(bit).tolist()) == {key for key, mask in model.items() if mask & int(bit)}
            if keys.size:
                leading = table.find_prefix(keys).tolist()
                assert leading == [model.get(key, 0) for key in keys.tolist()][: len(leading)]
                assert len(leading) == keys.size or keys.tolist()[len(leading)] not in model


def test_growth_is_spread_over_what_follows() -> None:
    table, random = HolderTable(), np.random.default_rng(0)
    keys = distinct(random.integers(0, 2**64, 90_000, dtype=np.uint64) | np.uint64(1))
    for part in np.array_split(keys[:78_000], 300):
        table.add(part, BITS[0])
    while table.move_on(1_024):
        pass
    before = table.num_buckets
    table.add(keys[78_000:79_000], BITS[0])
    assert table.num_buckets == 2 * before
    assert table.move_on(1_024), "there is more to do"
    assert (table.find(keys[:79_000]) == BITS[0]).all()
    table.check()
    for part in np.array_split(keys[79_000:], 50):
        table.add(part, BITS[0])
    assert not table.move_on(1), "adding has moved the rest"
    table.check()


def test_a_big_load_equals_small_ones() -> None:
    random = np.random.default_rng(0)
    keys = random.integers(0, 2**64, CHUNK + 1_000, dtype=np.uint64) | np.uint64(1)
    at_once, in_parts = HolderTable(), HolderTable()
    at_once.add(keys, BITS[0])
    for part in np.array_split(keys, 7):
        in_parts.add(part, BITS[0])
    assert (at_once.items()[0] == in_parts.items()[0]).all()
    at_once.check()
    assert at_once.nbytes <= 55 * len(at_once)


def test_nothing_is_left_of_what_was_removed() -> None:
    table = HolderTable()
    keys = np.arange(1, 2_001, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    for _ in range(20):
        table.add(keys, BITS[0])
        table.discard(keys, BITS[0])
    assert len(table) == 0
    table.check()
    empty = keys[:0]
    assert table.find(empty).size == table.add(empty, BITS[0])[0].size == table.discard(empty, BITS[0])[0].size == 0
