from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from diptych.engine.block_pool import BlockPool, BlockState
from diptych.engine.interface import CacheEvent


def chain(name: str, length: int) -> list[bytes]:
    """Hashes of a chain: the same name and position give the same hash, as equal tokens would."""
    return [f"{name[: i + 1]}".encode() for i in range(length)]


def index_chain(pool: BlockPool, blocks: list[int], hashes: list[bytes]) -> None:
    for i, (block, block_hash) in enumerate(zip(blocks, hashes, strict=True)):
        pool.index(block, block_hash, hashes[i - 1] if i else None, blocks[i - 1] if i else None)


def cached_chain(pool: BlockPool, name: str) -> list[int]:
    blocks = pool.allocate(len(name))
    assert blocks is not None
    index_chain(pool, blocks, chain(name, len(name)))
    pool.release(blocks)
    return blocks


def test_generation_rises_whenever_a_block_is_handed_out_again() -> None:
    pool = BlockPool(1)
    seen = []
    for _ in range(3):
        blocks = pool.reserve(1)
        assert blocks is not None
        seen.append(pool.slots(blocks)[0].generation)
        pool.cancel(blocks)
    assert seen == [1, 2, 3]


def test_nothing_changes_when_there_are_not_enough_blocks() -> None:
    pool = BlockPool(4)
    prefix = cached_chain(pool, "ab")
    assert pool.allocate(3, prefix) is None  # the prefix itself is two of the four
    assert pool.count(BlockState.CACHED) == 2
    assert pool.allocate(2, prefix) is not None
    pool.check()


def test_the_least_recently_used_leaf_is_evicted_first() -> None:
    pool = BlockPool(4)
    ab = cached_chain(pool, "ab")
    xy = cached_chain(pool, "xy")
    pool.acquire(ab)
    pool.release(ab)  # now xy is the older one
    pool.take_events()
    first = pool.allocate(3)
    assert first is not None
    assert set(first) == {*xy, ab[1]}
    assert pool.take_events() == [CacheEvent(removed=(b"xy", b"x", b"ab"))]
    assert pool.match(chain("ab", 2)) == ab[:1]
    assert pool.evictions == 3
    pool.check()


def test_a_parent_outlives_its_children_even_if_it_is_older() -> None:
    pool = BlockPool(3)
    cached_chain(pool, "ab")
    prefix = pool.match([b"a"])
    (own,) = pool.allocate(1, prefix) or []
    pool.index(own, b"ac", b"a", prefix[0])
    pool.release([*prefix, own])
    pool.take_events()
    assert pool.allocate(2) is not None
    assert pool.take_events() == [CacheEvent(removed=(b"ab", b"ac"))]
    pool.check()


def test_the_second_of_two_equal_computations_keeps_a_private_copy() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    assert first is not None
    assert second is not None
    index_chain(pool, first, [b"a", b"ab"])
    assert not pool.index(second[0], b"a", None, None)
    pool.index(second[1], b"ac", b"a", second[0])
    pool.release(first)
    pool.check()
    assert pool.num_available == 2  # the first one's blocks, although a block below its "a" is in use
    assert pool.allocate(2) is not None
    pool.release(second)
    assert pool.count(BlockState.FREE) == 1  # the private copy
    assert pool.count(BlockState.CACHED) == 1  # "ac", not to be found until somebody computes "a" again
    assert pool.match([b"a", b"ac"]) == []
    pool.check()


def test_a_block_that_was_a_leaf_is_none_once_it_has_an_idle_child() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(1), pool.allocate(2)
    assert first is not None
    assert second is not None
    index_chain(pool, first, [b"a"])
    pool.index(second[1], b"ac", b"a", second[0])
    pool.release(first)  # "a" is a leaf, and the older one
    pool.release(second)
    pool.take_events()
    assert pool.allocate(2) is not None
    assert pool.take_events() == [CacheEvent(removed=(b"ac",))]
    pool.check()


def test_events_tell_the_changes_in_order() -> None:
    pool = BlockPool(1)
    cached_chain(pool, "a")
    cached_chain(pool, "b")
    pool.clear_cache()
    assert pool.take_events() == [
        CacheEvent(stored=(b"a",)),
        CacheEvent(removed=(b"a",)),
        CacheEvent(stored=(b"b",)),
        CacheEvent(cleared=True),
    ]
    assert pool.take_events() == []
    assert pool.count(BlockState.FREE) == 1


def test_a_quarantined_block_is_not_handed_out() -> None:
    pool = BlockPool(2)
    blocks = pool.reserve(2)
    assert blocks is not None
    pool.mark_in_flight(blocks)
    pool.quarantine(blocks)
    assert pool.num_available == 0
    assert pool.allocate(1) is None
    pool.confirm_quiet(blocks)
    assert pool.num_available == 2
    pool.check()


def test_misuse_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(2)
    used, reserved = pool.allocate(1), pool.reserve(1)
    assert used is not None
    assert reserved is not None
    with pytest.raises(RuntimeError, match="RESERVED"):
        pool.release(reserved)
    with pytest.raises(RuntimeError, match="not IN_FLIGHT"):
        pool.deliver(reserved)
    with pytest.raises(RuntimeError, match="only USED"):
        pool.index(reserved[0], b"a", None, None)
    pool.release(used)
    with pytest.raises(RuntimeError, match="FREE"):
        pool.release(used)
    with pytest.raises(RuntimeError, match="FREE"):
        pool.acquire(used)
    pool.check()


def test_a_prefix_used_again_and_again_does_not_grow_the_books() -> None:
    pool = BlockPool(4)
    blocks = cached_chain(pool, "ab")
    for _ in range(1_000):
        pool.acquire(blocks)
        pool.release(blocks)
    pool.check()
    assert len(pool._cache._leaves) < 100


class BlockPoolMachine(RuleBasedStateMachine):
    """Many owners allocate, share, index, release, receive, abort; every invariant holds after every step."""

    NUM_BLOCKS = 12

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.NUM_BLOCKS)
        self.tables: list[tuple[str, list[int], int]] = []  # chain name, block table, blocks offered to the index
        self.reserved: list[list[int]] = []
        self.in_flight: list[list[int]] = []
        self.quarantined: list[list[int]] = []
        self.known: set[bytes] = set()  # what the events say is stored
        self.generations = [0] * self.NUM_BLOCKS

    def note_handed_out(self, blocks: list[int]) -> None:
        for slot in self.pool.slots(blocks):
            assert slot.generation > self.generations[slot.block]
            self.generations[slot.block] = slot.generation

    @rule(name=st.text("ab", min_size=1, max_size=6))
    def admit(self, name: str) -> None:
        prefix = self.pool.match(chain(name, len(name) - 1))
        needed, room = len(name) - len(prefix), self.pool.num_available
        blocks = self.pool.allocate(needed, prefix)
        if blocks is None:
            assert needed > room - len(prefix)
            return
        self.note_handed_out(blocks)
        self.tables.append((name, prefix + blocks, len(prefix)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def index_some(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.tables) - 1))
        name, blocks, done = self.tables[i]
        upto = data.draw(st.integers(done, len(name)))
        hashes = chain(name, len(name))
        for j in range(done, upto):
            self.pool.index(blocks[j], hashes[j], hashes[j - 1] if j else None, blocks[j - 1] if j else None)
        self.tables[i] = (name, blocks, upto)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        name, blocks, done = data.draw(st.sampled_from(self.tables))
        self.pool.acquire(blocks[:done])
        self.tables.append((name[:done], blocks[:done], done))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(i)[1])

    @rule(count=st.integers(1, 4))
    def reserve(self, count: int) -> None:
        blocks = self.pool.reserve(count)
        if blocks is not None:
            self.note_handed_out(blocks)
            self.reserved.append(blocks)

    @precondition(lambda self: self.reserved)
    @rule(cancel=st.booleans())
    def ticket(self, cancel: bool) -> None:
        blocks = self.reserved.pop(0)
        if cancel:
            self.pool.cancel(blocks)
        else:
            self.pool.mark_in_flight(blocks)
            self.in_flight.append(blocks)

    @precondition(lambda self: self.in_flight)
    @rule(abort=st.booleans())
    def arrive(self, abort: bool) -> None:
        blocks = self.in_flight.pop(0)
        if abort:
            self.pool.quarantine(blocks)
            self.quarantined.append(blocks)
        else:
            self.pool.deliver(blocks)
            self.pool.release(blocks)

    @precondition(lambda self: self.quarantined)
    @rule()
    def quiet(self) -> None:
        self.pool.confirm_quiet(self.quarantined.pop(0))

    @rule()
    def clear(self) -> None:
        self.pool.clear_cache()

    @invariant()
    def books_add_up(self) -> None:
        self.pool.check()
        held = [block for _, blocks, _ in self.tables for block in blocks]
        assert self.pool.count(BlockState.USED) == len(set(held))
        for block in held:
            assert self.pool.refs(block) == held.count(block)
        assert self.pool.count(BlockState.QUARANTINED) == sum(map(len, self.quarantined))

    @invariant()
    def events_tell_what_is_findable(self) -> None:
        for event in self.pool.take_events():
            assert not self.known & set(event.stored)
            assert set(event.removed) <= self.known
            self.known = set() if event.cleared else (self.known | set(event.stored)) - set(event.removed)
        for block_hash in self.known:
            assert len(self.pool.match([block_hash])) == 1

    def teardown(self) -> None:
        for _, blocks, _ in self.tables:
            self.pool.release(blocks)
        everything = self.pool.num_available + sum(map(len, self.reserved + self.in_flight + self.quarantined))
        assert everything == self.NUM_BLOCKS
        taken = self.pool.allocate(self.pool.num_available)  # every idle block can be evicted
        assert taken is not None
        self.pool.check()


TestBlockPool = BlockPoolMachine.TestCase
