"""Who owns each KV block: a fixed number of blocks, each in exactly one state.

                  reserve              mark_in_flight             quarantine
          ┌──────────────▶ RESERVED ─────────────────▶ IN_FLIGHT ─────────────▶ QUARANTINED
          │                   │ cancel                     │ deliver                 │ confirm_quiet
        FREE ◀────────────────┘                            ▼                         ▼
          ├──────────────────── allocate ───────────────▶ USED                     FREE
          ├◀───── release, no hash ────────────────────────┤ ▲
          └◀───────────── evict ──── CACHED ◀── release ───┘ │
                                       └────── acquire ──────┘

A transfer cannot be cancelled, so a block somebody may still write to is never FREE: it is quarantined until the writes
are known to be over. The generation of a block rises each time it is handed out, so a late message about an earlier
owner can be told apart.

Knows nothing about sequences, block contents, peers or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from diptych.engine.interface import CacheEvent
from diptych.engine.prefix_cache import PrefixCache
from diptych.messages import Slot


class BlockState(IntEnum):
    FREE = 0
    RESERVED = 1  # promised to a transfer whose ticket has not left
    IN_FLIGHT = 2  # a peer may be writing
    USED = 3  # READY in the life of a transfer: has at least one user
    CACHED = 4  # nobody uses it, but it holds a reusable prefix
    QUARANTINED = 5  # its request is gone, a peer may still be writing


FREE, RESERVED, IN_FLIGHT, USED, CACHED, QUARANTINED = BlockState


class BlockPool:
    """`num_blocks` blocks. Every method either does all it was asked or nothing; misuse raises RuntimeError."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; a pool needs at least one")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack; the lowest numbers go out first
        self._state: list[BlockState] = [FREE] * num_blocks
        self._refs = [0] * num_blocks
        self._generation = [0] * num_blocks
        self._counts = [0] * len(BlockState)
        self._counts[FREE] = num_blocks
        self._cache = PrefixCache(num_blocks)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` or `reserve` could hand out now: free ones and those it may evict."""
        return self._counts[FREE] + self._counts[CACHED]

    @property
    def evictions(self) -> int:
        return self._cache.evictions

    @property
    def has_events(self) -> bool:
        return self._cache.has_events

    def count(self, state: BlockState) -> int:
        return self._counts[state]

    def state(self, block: int) -> BlockState:
        return self._state[block]

    def refs(self, block: int) -> int:
        return self._refs[block]

    def slots(self, blocks: Sequence[int]) -> list[Slot]:
        """The blocks with their present generations."""
        return [Slot(block, self._generation[block]) for block in blocks]

    def is_private(self, block: int) -> bool:
        """Its only user may overwrite it: nobody shares it and no hash promises its content."""
        return self._refs[block] == 1 and self._cache.hash_of[block] is None

    # --- computing here -------------------------------------------------------------------------------------------

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of a hash chain. Takes no reference: pass them on as `prefix`."""
        return self._cache.match(hashes)

    def allocate(self, count: int, prefix: Sequence[int] = ()) -> list[int] | None:
        """Take a reference on each block of `prefix` and `count` new blocks (USED). None if there are not enough."""
        return self._take(count, prefix, USED)

    def acquire(self, blocks: Sequence[int]) -> None:
        """One more user for blocks that are USED or CACHED."""
        state, refs = self._state, self._refs
        for block in blocks:
            if state[block] is CACHED:
                self._cache.revive(block)
                self._set(block, USED)
            elif state[block] is not USED:
                raise RuntimeError(f"block {block} is {state[block].name}; only USED and CACHED blocks are shared")
            refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One user less. The last one leaves the block CACHED if it has a hash, else FREE.

        Goes from the end of the table to its start, so that a parent is never idle for longer than its children.
        """
        state, refs, hash_of = self._state, self._refs, self._cache.hash_of
        for block in reversed(blocks):
            if state[block] is not USED:
                raise RuntimeError(f"block {block} is {state[block].name}; only USED blocks are released")
            refs[block] -= 1
            if refs[block]:
                continue
            if hash_of[block] is None:
                self._set(block, FREE)
                self._free.append(block)
            else:
                self._set(block, CACHED)
                self._cache.retire(block)

    def index(self, block: int, block_hash: bytes, parent_hash: bytes | None, parent_block: int | None) -> bool:
        """Make a USED block, full and final, findable under its chain hash.

        False if another block has this hash already: this one stays a private copy. `parent_block` is the block before
        it in the same table (None, with `parent_hash`, for the first).
        """
        if self._state[block] is not USED:
            raise RuntimeError(f"block {block} is {self._state[block].name}; only USED blocks are indexed")
        return self._cache.insert(block, block_hash, parent_hash, parent_block)

    def clear_cache(self) -> None:
        """Forget every hash: CACHED blocks become FREE, USED ones stay with their users."""
        for block in self._cache.clear():
            self._set(block, FREE)
            self._free.append(block)

    def take_events(self) -> list[CacheEvent]:
        """Changes of the prefix cache since the last call, in order."""
        return self._cache.take_events()

    # --- receiving from a peer ------------------------------------------------------------------------------------

    def reserve(self, count: int, prefix: Sequence[int] = ()) -> list[int] | None:
        """Like `allocate`, but the new blocks are RESERVED for a transfer."""
        return self._take(count, prefix, RESERVED)

    def mark_in_flight(self, blocks: Sequence[int]) -> None:
        """The ticket has left: from now on a peer may write."""
        self._move(blocks, RESERVED, IN_FLIGHT)

    def deliver(self, blocks: Sequence[int]) -> None:
        """Every write has landed and none will follow."""
        self._move(blocks, IN_FLIGHT, USED)

    def cancel(self, blocks: Sequence[int]) -> None:
        """The ticket never left."""
        self._move(blocks, RESERVED, FREE)

    def quarantine(self, blocks: Sequence[int]) -> None:
        """The request is gone, but writes may still land."""
        self._move(blocks, IN_FLIGHT, QUARANTINED)

    def confirm_quiet(self, blocks: Sequence[int]) -> None:
        """No write is in flight and none will be posted."""
        self._move(blocks, QUARANTINED, FREE)

    # --- insides --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Every invariant, by recounting. O(blocks)."""
        for state in BlockState:
            assert self._counts[state] == self._state.count(state), f"count of {state.name} is wrong"
        assert sum(self._counts) == self.num_blocks, "blocks were lost or invented"
        assert len(set(self._free)) == len(self._free) == self._counts[FREE], "the free list repeats or misses blocks"
        assert all(self._state[block] is FREE for block in self._free), "a block on the free list is not FREE"
        for block, state in enumerate(self._state):
            owned = state in (RESERVED, IN_FLIGHT, USED)
            assert (self._refs[block] > 0) == owned, f"block {block} is {state.name} with {self._refs[block]} users"
            assert self._refs[block] <= 1 or state is USED, f"block {block} is shared while {state.name}"
            hashed = self._cache.hash_of[block] is not None
            assert hashed or state is not CACHED, f"block {block} is CACHED without a hash"
            assert not hashed or state in (USED, CACHED), f"block {block} is {state.name} with a hash"
        self._cache.check()

    def _take(self, count: int, prefix: Sequence[int], state: BlockState) -> list[int] | None:
        if prefix:
            idle = sum(self._state[block] is CACHED for block in prefix)
            if count > self.num_available - idle:
                return None
            self.acquire(prefix)
        elif count > self.num_available:
            return None
        free = self._free
        while len(free) < count:
            block = self._cache.evict()
            self._set(block, FREE)
            free.append(block)
        blocks = [free.pop() for _ in range(count)]
        for block in blocks:
            self._generation[block] += 1
            self._refs[block] = 1
            self._state[block] = state
        self._counts[FREE] -= count
        self._counts[state] += count
        return blocks

    def _move(self, blocks: Sequence[int], before: BlockState, after: BlockState) -> None:
        for block in blocks:
            if self._state[block] is not before:
                raise RuntimeError(f"block {block} is {self._state[block].name}, not {before.name}")
        for block in blocks:
            self._set(block, after)
            if after in (FREE, QUARANTINED):
                self._refs[block] = 0
            if after is FREE:
                self._free.append(block)

    def _set(self, block: int, state: BlockState) -> None:
        self._counts[self._state[block]] -= 1
        self._counts[state] += 1
        self._state[block] = state
