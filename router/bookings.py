"""What this router has placed and not yet seen end: tokens to prefill, sequences and blocks per worker.

Reported load lags; without bookings a burst of requests would all see the same idle worker. What other routers have
placed counts likewise, as far as it is known (`sharing.load`). Own sums are zero at rest. Knows nothing about workers
beyond their ids.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from router.placement import Placement


class Load(NamedTuple):
    """What is booked on one worker."""

    tokens: int  # of prompts, to compute
    sequences: int
    blocks: int


class Elsewhere(Protocol):
    """What other routers have booked."""

    def load(self, worker_id: str) -> Load: ...

    def take_changed(self) -> set[str]:
        """The workers whose load has changed since this was last asked."""
        ...


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
        self.bookings.tokens[self.computing_id] -= self.tokens
        self.bookings.touch(self.computing_id)
        self.tokens = 0

    def release(self) -> None:
        """Idempotent."""
        if self.released:
            return
        self.released = True
        self.prefilled()
        self.bookings.sequences[self.decode_id] -= 1
        self.bookings.blocks[self.decode_id] -= self.blocks
        self.bookings.touch(self.decode_id)
        self.bookings.forget_zeros()


@dataclass(slots=True)
class Bookings:
    elsewhere: Elsewhere | None = None
    tokens: Counter[str] = field(default_factory=Counter)  # prompt tokens to compute, by worker; this router's own
    sequences: Counter[str] = field(default_factory=Counter)
    blocks: Counter[str] = field(default_factory=Counter)
    _changed: set[str] = field(default_factory=set)
    _watchers: list[set[str]] = field(default_factory=list)

    def book(self, placement: Placement, num_tokens: int, num_blocks: int) -> Booking:
        """Hold a placement's capacity until the booking is released."""
        computing = placement.prefill_id or placement.decode_id
        booking = Booking(
            self, computing, placement.decode_id, max(1, num_tokens - placement.predicted_cached), num_blocks
        )
        self.tokens[computing] += booking.tokens
        self.sequences[placement.decode_id] += 1
        self.blocks[placement.decode_id] += num_blocks
        self.touch(computing, placement.decode_id)
        return booking

    def own(self, worker_id: str) -> Load:
        """What this router has booked on a worker."""
        return Load(self.tokens.get(worker_id, 0), self.sequences.get(worker_id, 0), self.blocks.get(worker_id, 0))

    def load(self, worker_id: str) -> Load:
        """What all routers have booked on it, as far as this one knows."""
        own = self.own(worker_id)
        if self.elsewhere is None:
            return own
        theirs = self.elsewhere.load(worker_id)
        return Load(own.tokens + theirs.tokens, own.sequences + theirs.sequences, own.blocks + theirs.blocks)

    @property
    def workers(self) -> set[str]:
        """Those on which this router has something booked."""
        return {*self.tokens, *self.sequences, *self.blocks}

    def touch(self, *worker_ids: str) -> None:
        self._changed.update(worker_ids)
        for watcher in self._watchers:
            watcher.update(worker_ids)

    def take_changed(self) -> set[str]:
        """The workers whose load, of all routers, has changed since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed if self.elsewhere is None else changed | self.elsewhere.take_changed()

    def watch(self) -> set[str]:
        """A set that gets every worker whose own load changes from now on. Whoever asked for it empties it."""
        watcher: set[str] = set()
        self._watchers.append(watcher)
        return watcher

    def forget_zeros(self) -> None:
        for counter in (self.tokens, self.sequences, self.blocks):
            for worker_id in [worker_id for worker_id, count in counter.items() if not count]:
                del counter[worker_id]

    @property
    def total(self) -> int:
        """Of this router; zero at rest."""
        return sum(self.tokens.values()) + sum(self.sequences.values()) + sum(self.blocks.values())
