"""Which blocks hold a reusable prefix, and which of them goes first when room is needed.

A block is known by its chain hash, which covers its own tokens and all before it, so one dictionary replaces a radix
tree. Eviction takes the least recently used *leaf*: a block whose child is still here stays, because a child without
its parent cannot be found.

    root ── A ── B ── C      only C and D are leaves: C goes before B, B and D before A
             └── D

A parent knows its children by its hash, not by its block, and a child counts when its users also hold the parent or
when nobody uses it. The exception is a sequence that computed the same prefix as another one at the same time: it
keeps a private copy of the parent, so its child does not pin the parent of the other until it is idle itself. With
that, every idle block can be evicted sooner or later, and "how many blocks can I get" is one addition.

Knows nothing about reference counts, sequences or block contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from diptych.engine.interface import CacheEvent


class PrefixCache:
    """Hash index over the blocks of one pool. Every operation on one block is O(log blocks) or less."""

    def __init__(self, num_blocks: int) -> None:
        self.hash_of: list[bytes | None] = [None] * num_blocks  # read-only for others
        self.evictions = 0
        self._block_of: dict[bytes, int] = {}
        self._parent_of: list[bytes | None] = [None] * num_blocks
        self._linked = [False] * num_blocks  # counted in `_children` of its parent
        self._children: dict[bytes, int] = {}  # only counts above zero
        self._idle_since = [0] * num_blocks  # tick at which its last user left; 0 while in use
        self._tick = 0
        self._leaves: list[tuple[int, int]] = []  # heap of (tick, block); stale entries are skipped when popped
        self._events: list[tuple[str, list[bytes]]] = []

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of a chain."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, block: int, block_hash: bytes, parent_hash: bytes | None, parent_block: int | None) -> bool:
        """Index a block in use. False, and nothing changes, if another block already has this hash.

        `parent_block` is where the same user holds the parent; `parent_hash` is None for the first block of a chain.
        """
        if block_hash in self._block_of:
            return False
        if self.hash_of[block] is not None:
            raise RuntimeError(f"block {block} is already indexed under another hash")
        self._block_of[block_hash] = block
        self.hash_of[block] = block_hash
        self._parent_of[block] = parent_hash
        if parent_hash is not None and self._block_of.get(parent_hash) == parent_block:
            self._link(block, parent_hash)
        self._note("stored", block_hash)
        return True

    def retire(self, block: int) -> None:
        """The last user of an indexed block left: it may be evicted from now on."""
        self._tick += 1
        self._idle_since[block] = self._tick
        parent = self._parent_of[block]
        if parent is not None and not self._linked[block]:
            self._link(block, parent)
        if self.hash_of[block] not in self._children:
            self._push(block)

    def revive(self, block: int) -> None:
        """A retired block is in use again."""
        self._idle_since[block] = 0

    def evict(self) -> int:
        """Forget the least recently used leaf and return its block.

        Raises:
            IndexError: no block is retired.
        """
        while True:
            tick, block = heappop(self._leaves)
            block_hash = self.hash_of[block]
            if self._idle_since[block] == tick and block_hash is not None and block_hash not in self._children:
                break
        parent = self._parent_of[block]
        self._forget(block, block_hash)
        self.evictions += 1
        self._note("removed", block_hash)
        if parent is not None:
            self._unlink(parent)
        return block

    def clear(self) -> list[int]:
        """Forget everything. Returns the blocks that were retired; those in use simply lose their hash."""
        retired = [block for block, tick in enumerate(self._idle_since) if tick]
        for block_hash, block in list(self._block_of.items()):
            self._forget(block, block_hash)
        self._children.clear()
        self._leaves.clear()
        self._events.append(("cleared", []))
        return retired

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def take_events(self) -> list[CacheEvent]:
        """What changed since the last call, in order."""
        events, self._events = self._events, []
        made = {
            "stored": lambda hashes: CacheEvent(stored=tuple(hashes)),
            "removed": lambda hashes: CacheEvent(removed=tuple(hashes)),
            "cleared": lambda hashes: CacheEvent(cleared=True),
        }
        return [made[kind](hashes) for kind, hashes in events]

    def check(self) -> None:
        """Every invariant, by recounting. O(blocks)."""
        indexed = {block_hash: block for block, block_hash in enumerate(self.hash_of) if block_hash is not None}
        assert indexed == self._block_of, "the hash index and the blocks' hashes differ"
        children: dict[bytes, int] = {}
        for block_hash, block in indexed.items():
            parent = self._parent_of[block]
            if parent is None or not self._linked[block]:
                assert parent is None or not self._idle_since[block], f"idle block {block_hash.hex()} has no link"
                continue
            children[parent] = children.get(parent, 0) + 1
            if not self._idle_since[block]:  # its users hold the parent too
                assert parent in indexed, "a parent was evicted before its child in use"
                assert not self._idle_since[indexed[parent]], "a parent is idle while its child is in use"
        assert children == self._children, "child counts are wrong"
        leaves = set(self._leaves)
        for block, tick in enumerate(self._idle_since):
            assert not tick or self.hash_of[block] is not None, f"block {block} is retired without a hash"
            assert not tick or self.hash_of[block] in children or (tick, block) in leaves, f"leaf {block} is lost"

    def _link(self, block: int, parent: bytes) -> None:
        self._linked[block] = True
        self._children[parent] = self._children.get(parent, 0) + 1

    def _unlink(self, parent: bytes) -> None:
        self._children[parent] -= 1
        if self._children[parent]:
            return
        del self._children[parent]
        block = self._block_of.get(parent)
        if block is not None and self._idle_since[block]:
            self._push(block)

    def _push(self, block: int) -> None:
        if len(self._leaves) > 2 * len(self.hash_of) + 64:  # mostly stale: a hot prefix is retired again and again
            self._leaves = [entry for entry in set(self._leaves) if self._idle_since[entry[1]] == entry[0]]
            heapify(self._leaves)
        heappush(self._leaves, (self._idle_since[block], block))

    def _forget(self, block: int, block_hash: bytes) -> None:
        del self._block_of[block_hash]
        self.hash_of[block] = None
        self._parent_of[block] = None
        self._linked[block] = False
        self._idle_since[block] = 0

    def _note(self, kind: str, block_hash: bytes) -> None:
        if self._events and self._events[-1][0] == kind:
            self._events[-1][1].append(block_hash)
        else:
            self._events.append((kind, [block_hash]))
