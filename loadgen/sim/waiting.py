"""The router's queue on a virtual clock: what `router.admission.door` is in a serving process.

Every decision is `router.admission`'s own; here is only who is told, and when it is asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from loadgen.sim.event_loop import NS_PER_MS, EventLoop, Order
from router.admission.admission import Admission
from router.admission.ask import Ask, Decision, Go, Refuse
from router.admission.line import Entry

Asking = TypeVar("Asking")


class Waiting(Generic[Asking]):
    def __init__(
        self,
        core: Admission,
        loop: EventLoop,
        hop_ns: int,
        go: Callable[[Asking, Go], None],
        refuse: Callable[[Asking, Refuse], None],
    ) -> None:
        """
        Args:
            hop_ns: what workers say is known so much later.
            go: place this one, and say `placed` or `leave`.
            refuse: this one is over.
        """
        self.core = core
        self._loop = loop
        self._hop_ns = hop_ns
        self._go = go
        self._refuse = refuse
        self._asking: dict[Entry, Asking] = {}
        self._wakes_at: set[int] = set()  # ns

    def arrive(self, asking: Asking, ask: Ask) -> None:
        entry, decisions = self.core.arrive(ask, self._now_ms)
        self._asking[entry] = asking
        self._carry_out(decisions)

    def placed(self, entry: Entry, decode_id: str) -> None:
        self.core.placed(entry, decode_id, self._now_ms)
        self.wake()

    def prefilled(self, entry: Entry) -> None:
        self.core.prefilled(entry, self._now_ms)
        self.wake(self._hop_ns)

    def leave(self, entry: Entry) -> None:
        self.core.leave(entry, self._now_ms)
        self.wake(self._hop_ns)

    def wake(self, delay_ns: int = 0) -> None:
        """There may be room. What happens at one moment is taken together."""
        if self.core.num_queued:
            self._wake_at(self._loop.now_ns + delay_ns)

    def reported(self) -> None:
        """A worker has said how it is."""
        self.wake(self._hop_ns)

    @property
    def _now_ms(self) -> float:
        return self._loop.now_ns / NS_PER_MS

    def _wake_at(self, time_ns: int) -> None:
        if time_ns not in self._wakes_at:
            self._wakes_at.add(time_ns)
            self._loop.at(time_ns, Order.INPUT, self._wake_up)

    def _wake_up(self) -> None:
        self._wakes_at.discard(self._loop.now_ns)
        self._carry_out(self.core.wake(self._now_ms))

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            asking = self._asking.pop(decision.entry)
            if isinstance(decision, Go):
                self._go(asking, decision)
            else:
                self._refuse(asking, decision)
        if (due_ms := self.core.next_due_ms) is not None:
            self._wake_at(max(self._loop.now_ns, -int(-due_ms * NS_PER_MS // 1)))
