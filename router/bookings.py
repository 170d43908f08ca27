"""What this router has placed and not yet seen end: tokens to prefill, sequences and blocks per worker.

Reported load lags; without bookings a burst of requests would all see the same idle worker. Sums are zero at rest.
Knows nothing about workers beyond their ids.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from router.placement import Placement


class Load(NamedTuple):
    """What is booked on one worker."""

    tokens: int  # of prompts, to compute
    sequences: int
    blocks: int


@dataclass(slots=True)
class Booking:
    """One request's claim on its pair. `prefilled` gives back the prompt's share when the first token is there."""

    bookings: Bookings
    computing_id: str  # who computes the prompt: the prefill worker, or decode itself
    decode_id: str
    tokens: int
    blocks: int
    released: bool = False

    def prefilled(self) -> None:
        """Idempotent."""
        if not self.tokens:
            return
        self.bookings.changed.add(self.computing_id)
        self.bookings.tokens[self.computing_id] -= self.tokens
        self.tokens = 0

    def release(self) -> None:
        """Idempotent."""
        if self.released:
            return
        self.released = True
        self.prefilled()
        self.bookings.changed.add(self.decode_id)
        self.bookings.sequences[self.decode_id] -= 1
        self.bookings.blocks[self.decode_id] -= self.blocks
        self.bookings.forget_zeros()


@dataclass(slots=True)
class Bookings:
    tokens: Counter[str] = field(default_factory=Counter)  # prompt tokens to compute, by worker
    sequences: Counter[str] = field(default_factory=Counter)
    blocks: Counter[str] = field(default_factory=Counter)
    changed: set[str] = field(default_factory=set)  # workers, since `take_changed`

    def book(self, placement: Placement, num_tokens: int, num_blocks: int) -> Booking:
        """Hold a placement's capacity until the booking is released."""
        computing = placement.prefill_id or placement.decode_id
        booking = Booking(
            self, computing, placement.decode_id, max(1, num_tokens - placement.predicted_cached), num_blocks
        )
        self.tokens[computing] += booking.tokens
        self.sequences[placement.decode_id] += 1
        self.blocks[placement.decode_id] += num_blocks
        self.changed.update((computing, placement.decode_id))
        return booking

    def load(self, worker_id: str) -> Load:
        return Load(self.tokens.get(worker_id, 0), self.sequences.get(worker_id, 0), self.blocks.get(worker_id, 0))

    def take_changed(self) -> set[str]:
        """The workers whose load has changed since this was last asked."""
        changed, self.changed = self.changed, set()
        return changed

    def forget_zeros(self) -> None:
        for counter in (self.tokens, self.sequences, self.blocks):
            for worker_id in [worker_id for worker_id, count in counter.items() if not count]:
                del counter[worker_id]

    @property
    def total(self) -> int:
        """Zero at rest."""
        return sum(self.tokens.values()) + sum(self.sequences.values()) + sum(self.blocks.values())
