"""Gives sequences their blocks: prefix look-up, growth, copy on write, hashing of finished blocks, and giving back.

The only code that changes a sequence's block table. Decides nothing about who goes first.
"""

from __future__ import annotations

from diptych.engine.block_pool import BlockPool
from diptych.engine.interface import Reservation
from diptych.engine.limits import Limits
from diptych.engine.sequence import Group, Sequence
from kv_transfer.hashing import block_hashes, next_hash


class BlockTables:
    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self._limits = limits
        self._block_size = limits.block_size

    def prompt_hashes(self, group: Group) -> list[bytes]:
        if group.request.prompt_hashes is not None:
            return list(group.request.prompt_hashes)
        return block_hashes(group.request.hash_key, group.request.prompt, self._block_size)

    def admit(self, sequence: Sequence) -> bool:
        """Blocks for all known tokens, taking from the cache what is there. False if there is no room now."""
        cached = self._match(sequence)
        fresh = self.pool.allocate(self._limits.num_blocks(len(sequence.tokens)) - len(cached), cached)
        if fresh is None:
            return False
        self._seat(sequence, cached, fresh)
        return True

    def reserve(self, sequence: Sequence) -> Reservation | None:
        """Blocks for a prompt that a peer will write. None if there is no room now."""
        cached = self._match(sequence)
        fresh = self.pool.reserve(self._limits.num_blocks(len(sequence.tokens)) - len(cached), cached)
        if fresh is None:
            return None
        self._seat(sequence, cached, fresh)
        sequence.group.first_reserved = len(cached)
        return Reservation(sequence.group.request_id, len(cached), self.pool.slots(fresh))

    def extend(self, sequence: Sequence, copies: list[tuple[int, int]]) -> bool:
        """Make the position of the next token writable. False if that takes a block and there is none.

        A borrowed tail is copied: the pair (source, destination) is added to `copies`. Copies run before the rows, so
        it does no harm if the source changes hands in the same step.
        """
        index = sequence.num_computed // self._block_size
        if index < len(sequence.blocks):
            return not sequence.borrows_tail or self._own_tail(sequence, copies)
        grown = self.pool.allocate(1)
        if grown is None:
            return False
        sequence.blocks += grown
        return True

    def extend_for_guess(self, sequence: Sequence, count: int) -> int:
        """Make room behind the next token for up to `count` more, as far as that takes nothing from anybody.

        Returns for how many there is room. `trim` gives back what was taken for guesses that were wrong.
        """
        behind = sequence.num_computed + 1
        missing = self._limits.num_blocks(behind + count) - len(sequence.blocks)
        if (take := min(missing, self.pool.num_available)) > 0:
            sequence.blocks += self.pool.allocate(take) or []
        return min(count, len(sequence.blocks) * self._block_size - behind)

    def trim(self, sequence: Sequence) -> None:
        """Give back blocks behind the computed tokens."""
        keep = self._limits.num_blocks(sequence.num_computed)
        surplus = sequence.blocks[keep:]
        del sequence.blocks[keep:]
        self.pool.release(surplus)

    def share_prompt(self, root: Sequence, fork: Sequence) -> None:
        """The fork reads the root's prompt blocks; a partial last one only until it writes to it."""
        num_tokens = len(root.group.request.prompt)
        self.pool.acquire(root.blocks)
        fork.blocks = list(root.blocks)
        fork.num_computed = num_tokens
        fork.num_indexed = num_tokens // self._block_size
        fork.borrows_tail = num_tokens % self._block_size != 0

    def index_computed(self, sequence: Sequence) -> None:
        """Offer blocks that became full and final to the prefix cache."""
        size = self._block_size
        for i in range(sequence.num_indexed, sequence.num_computed // size):
            parent = sequence.hashes[i - 1] if i else None
            if i == len(sequence.hashes):
                tokens = sequence.tokens[i * size : (i + 1) * size]
                sequence.hashes.append(next_hash(sequence.group.request.hash_key, parent, tokens))
            self.pool.index(sequence.blocks[i], sequence.hashes[i], parent, sequence.blocks[i - 1] if i else None)
            sequence.num_indexed = i + 1

    def mark_in_flight(self, sequence: Sequence) -> None:
        self.pool.mark_in_flight(sequence.blocks[sequence.group.first_reserved :])

    def delivered(self, sequence: Sequence) -> None:
        """Every write of a reservation has landed: the prompt is here."""
        self.pool.deliver(sequence.blocks[sequence.group.first_reserved :])
        sequence.num_computed = len(sequence.tokens)

    def release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.forget_blocks())

    def release_reservation(self, sequence: Sequence, *, in_flight: bool) -> list[int]:
        """Give up a reservation. Returns the blocks that must stay quarantined because a peer may be writing."""
        blocks = sequence.forget_blocks()
        split = sequence.group.first_reserved
        self.pool.release(blocks[:split])
        if in_flight:
            self.pool.quarantine(blocks[split:])
            return blocks[split:]
        self.pool.cancel(blocks[split:])
        return []

    def _match(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the known tokens, leaving at least one token to compute: logits need it."""
        return self.pool.match(sequence.hashes[: (len(sequence.tokens) - 1) // self._block_size])

    def _seat(self, sequence: Sequence, cached: list[int], fresh: list[int]) -> None:
        sequence.blocks = cached + fresh
        sequence.num_indexed = len(cached)
        sequence.num_computed = len(cached) * self._block_size
        if sequence.group.prompt_cached is None:
            sequence.group.prompt_cached = sequence.num_computed

    def _own_tail(self, sequence: Sequence, copies: list[tuple[int, int]]) -> bool:
        source = sequence.blocks[-1]
        if not self.pool.is_private(source):
            own = self.pool.allocate(1)
            if own is None:
                return False
            copies.append((source, own[0]))
            sequence.blocks[-1] = own[0]
            self.pool.release([source])
        sequence.borrows_tail = False
        return True
