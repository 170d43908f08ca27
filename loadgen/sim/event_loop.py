"""Virtual time: events in order of their time, and a digest of all that happened.

Times are whole nanoseconds, so that adding durations in another order gives the same sum. Events of one moment run by
kind, then by worker, then in the order they were scheduled. Knows nothing about what events do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from hashlib import blake2b
from heapq import heappop, heappush

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


class Order(IntEnum):
    """Of events at the same moment: steps end, then inputs come, then the next steps begin with them."""

    STEP_END = 0
    INPUT = 1
    STEP_BEGIN = 2


class EventLoop:
    """Attributes: now_ns; num_events run so far; phase: how far this moment is, as the greatest (order, worker) run."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.num_events = 0
        self.phase = (0, -1)
        self._heap: list[tuple[int, int, int, int, Callable[[], None]]] = []
        self._count = 0
        self._digest = blake2b(digest_size=16)

    def at(self, time_ns: int, order: Order, action: Callable[[], None], worker: int = -1) -> None:
        """Run `action` at a time that is not past."""
        if time_ns < self.now_ns:
            raise ValueError(f"an event for {time_ns} ns was scheduled at {self.now_ns} ns")
        self._count += 1
        heappush(self._heap, (time_ns, order, worker, self._count, action))

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """An input that is under way for so long."""
        self.at(self.now_ns + delay_ns, Order.INPUT, action)

    def run(self) -> None:
        """Until nothing is left to happen."""
        heap = self._heap
        while heap:
            time_ns, order, worker, _, action = heappop(heap)
            if time_ns > self.now_ns or (order, worker) > self.phase:
                self.phase = (order, worker)
            self.now_ns = time_ns
            self.num_events += 1
            action()

    def note(self, what: bytes, time_ns: int, subject: int, worker: int = 0) -> None:
        """Something that a second run must repeat: it goes into the digest."""
        self._digest.update(what + struct.pack("<qqq", time_ns, subject, worker))

    @property
    def digest(self) -> str:
        """Of all notes so far, in their order."""
        return self._digest.hexdigest()
