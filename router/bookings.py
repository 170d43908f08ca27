"""What this router has placed and not yet seen end: tokens to prefill, sequences and blocks per worker.

Reported load lags; without bookings a burst of requests would all see the same idle worker. Sums are zero at rest.
Knows nothing about workers beyond their ids.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from router.placement import Placement


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
        self.bookings.tokens[self.computing_id] -= self.tokens
        self.tokens = 0

    def release(self) -> None:
        """Idempotent."""
        if self.released:
            return
        self.released = True
        self.prefilled()
        self.bookings.sequences[self.decode_id] -= 1
        self.bookings.blocks[self.decode_id] -= self.blocks
        self.bookings.forget_zeros()


@dataclass(slots=True)
class Bookings:
    tokens: Counter[str] = field(default_factory=Counter)  # prompt tokens to compute, by worker
    sequences: Counter[str] = field(default_factory=Counter)
    blocks: Counter[str] = field(default_factory=Counter)

    def book(self, placement: Placement, num_tokens: int, num_blocks: int) -> Booking:
        """Hold a placement's capacity until the booking is released."""
        computing = placement.prefill_id or placement.decode_id
        booking = Booking(
            self, computing, placement.decode_id, max(1, num_tokens - placement.predicted_cached), num_blocks
        )
        self.tokens[computing] += booking.tokens
        self.sequences[placement.decode_id] += 1
        self.blocks[placement.decode_id] += num_blocks
        return booking

    def forget_zeros(self) -> None:
        for counter in (self.tokens, self.sequences, self.blocks):
            for worker_id in [worker_id for worker_id, count in counter.items() if not count]:
                del counter[worker_id]

    @property
    def total(self) -> int:
        """Zero at rest."""
        return sum(self.tokens.values()) + sum(self.sequences.values()) + sum(self.blocks.values())
