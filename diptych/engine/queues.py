"""Where every sequence that may compute stands, and in which order.

    asking   RECEIVE requests that want blocks for a transfer             first come, first served
    waiting  wants blocks and a place to compute; preempted ones go first first come, first served
    parked   has blocks, waits for a place (just delivered, just forked)  first come, first served
    running  computes                                                     in order of admission

Parked sequences are promoted before anything waiting is admitted, so running + parked is in order of admission too.
A sequence that waits for a delivery or is held for a push is in none of the four. Knows nothing about blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from diptych.engine.interface import Kind
from diptych.engine.sequence import Sequence


class Queues:
    """Sequences by their id in four ordered dictionaries: O(1) to add and to remove at either end or by id."""

    def __init__(self) -> None:
        self.asking: OrderedDict[int, Sequence] = OrderedDict()
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()
        self.parked: OrderedDict[int, Sequence] = OrderedDict()
        self.running: OrderedDict[int, Sequence] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self.running or self.waiting or self.parked or self.asking)

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self.running.values(), self.parked.values(), self.waiting.values(), self.asking.values())

    @property
    def num_prefill_tokens(self) -> int:
        """Known tokens that are still to be computed here, decoding not counted."""
        own = chain(self.running.values(), self.parked.values(), self.waiting.values())
        return sum(sequence.num_uncomputed for sequence in own if not sequence.decoding)

    def ask(self, sequence: Sequence) -> None:
        self.asking[sequence.sequence_id] = sequence

    def wait(self, sequence: Sequence) -> None:
        self.waiting[sequence.sequence_id] = sequence

    def wait_first(self, sequence: Sequence) -> None:
        self.waiting[sequence.sequence_id] = sequence
        self.waiting.move_to_end(sequence.sequence_id, last=False)

    def park(self, sequence: Sequence) -> None:
        self.parked[sequence.sequence_id] = sequence

    def run(self, sequence: Sequence) -> None:
        self.running[sequence.sequence_id] = sequence

    def remove(self, sequence: Sequence) -> None:
        """Take it out of whichever queue it is in, if any."""
        for queue in (self.running, self.parked, self.waiting, self.asking):
            if queue.pop(sequence.sequence_id, None) is not None:
                return

    def promote(self, max_running: int) -> None:
        while self.parked and len(self.running) < max_running:
            self.run(self.parked.popitem(last=False)[1])

    def oldest(self, *, can_compute: bool) -> Sequence | None:
        """Who is next to get blocks. Without `can_compute` only RECEIVE requests, which need no place in the step."""
        waiting = next(iter(self.waiting.values()), None) if can_compute else None
        asking = next(iter(self.asking.values()), None)
        if waiting is None or asking is None:
            return waiting or asking
        return waiting if waiting.group.arrival < asking.group.arrival else asking

    def victim(self) -> Sequence:
        """The most recently admitted sequence that may lose its blocks.

        Never one of a PREFILL request: a peer may be reading them. It needs no more blocks either, so it is in nobody's
        way for ever.
        """
        residents = chain(reversed(self.parked.values()), reversed(self.running.values()))
        return next(sequence for sequence in residents if sequence.group.request.kind is not Kind.PREFILL)
