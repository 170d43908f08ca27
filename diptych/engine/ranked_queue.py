"""Sequences in order of rank, best first. Knows nothing about what they wait for."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from diptych.engine.sequence import Rank, Sequence


class RankedQueue:
    """A heap that forgets lazily: O(log n) to add, O(1) to remove anywhere, amortised O(log n) to look at the best."""

    def __init__(self) -> None:
        self._members: dict[int, Sequence] = {}
        self._heap: list[Rank] = []  # of members, and of some that have left

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        """In no particular order."""
        return iter(self._members.values())

    def add(self, sequence: Sequence) -> None:
        if len(self._heap) > 2 * len(self._members) + 64:  # mostly those that left
            self._heap = [member.rank for member in self]
            heapify(self._heap)
        self._members[sequence.sequence_id] = sequence
        heappush(self._heap, sequence.rank)

    def discard(self, sequence: Sequence) -> bool:
        """Take it out. False if it is not here."""
        return self._members.pop(sequence.sequence_id, None) is not None

    def first(self) -> Sequence | None:
        """The one of the best rank."""
        while self._heap:
            member = self._members.get(self._heap[0].sequence_id)
            if member is not None:
                return member
            heappop(self._heap)
        return None
