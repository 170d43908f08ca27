"""Where every sequence that may compute stands. In each queue the best rank (`sequence.Rank`) goes first.

    asking   RECEIVE requests that want blocks for a transfer
    waiting  wants blocks and a place to compute: new ones, and those that had to yield
    parked   has blocks, waits for a place (just delivered, just forked)
    running  computes

Parked sequences are promoted before anything waiting is admitted: they hold blocks already. A sequence that waits for a
delivery or is held for a push is in none of the four. Knows nothing about blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from diptych.engine.interface import Kind
from diptych.engine.ranked_queue import RankedQueue
from diptych.engine.sequence import Sequence, by_rank

PATIENCE_STEPS = 64  # how long who waits for a place in the step lets others be given blocks meanwhile


class Queues:
    """A sequence is in one queue at most."""

    def __init__(self) -> None:
        self.asking = RankedQueue()
        self.waiting = RankedQueue()
        self.parked = RankedQueue()
        self.running: dict[int, Sequence] = {}

    def __bool__(self) -> bool:
        return bool(self.running or self.waiting or self.parked or self.asking)

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self.running.values(), self.parked, self.waiting, self.asking)

    @property
    def num_prefill_tokens(self) -> int:
        """Known tokens that are still to be computed here, decoding not counted."""
        own = chain(self.running.values(), self.parked, self.waiting)
        return sum(sequence.num_uncomputed for sequence in own if not sequence.decoding)

    def running_by_kind(self) -> dict[str, int]:
        """Parked ones are counted as running."""
        return _by_kind(chain(self.running.values(), self.parked))

    def waiting_by_kind(self) -> dict[str, int]:
        return _by_kind(chain(self.waiting, self.asking))

    def ranked(self) -> list[Sequence]:
        """What computes, best rank first."""
        return sorted(self.running.values(), key=by_rank)

    def run(self, sequence: Sequence) -> None:
        self.running[sequence.sequence_id] = sequence

    def remove(self, sequence: Sequence) -> None:
        """Take it out of whichever queue it is in, if any."""
        if self.running.pop(sequence.sequence_id, None) is None:
            any(queue.discard(sequence) for queue in (self.parked, self.waiting, self.asking))

    def promote(self, max_running: int) -> None:
        while len(self.running) < max_running and (sequence := self.parked.first()) is not None:
            self.parked.discard(sequence)
            self.run(sequence)

    def next(self, *, can_compute: bool, tick: int) -> Sequence | None:
        """Who is next to get blocks.

        RECEIVE requests need no place in the step. Without `can_compute` they may pass those that do, so that their KV
        is on its way by the time there is a place; but nobody is passed for longer than PATIENCE_STEPS, or a stream of
        deliveries could take every place that becomes free.
        """
        waiting, asking = self.waiting.first(), self.asking.first()
        if waiting is None or (asking is not None and asking.rank < waiting.rank):
            return asking
        if can_compute:
            return waiting
        return asking if tick - waiting.group.tick < PATIENCE_STEPS else None

    def victim(self) -> Sequence:
        """The sequence of the worst rank that may lose its blocks.

        Never one of a PREFILL request: a peer may be reading them. It needs no more blocks either, so it is in nobody's
        way for ever.
        """
        residents = chain(self.parked, self.running.values())
        return max((each for each in residents if each.group.request.kind is not Kind.PREFILL), key=by_rank)


def _by_kind(sequences: Iterator[Sequence]) -> dict[str, int]:
    counts = Counter(sequence.group.request.kind for sequence in sequences)
    return {kind.value: counts[kind] for kind in Kind}
