"""When somebody's turn would come and its first token be there, as things are at one moment; and who is too late.

Knows no clock: a forecast is made for one event and forgotten with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from router.admission.ask import Reason, Refuse
from router.admission.drain import Drain
from router.admission.line import Entry, Line
from router.admission.room import Room


@dataclass(frozen=True, slots=True)
class Forecast:
    now_ms: float
    room: Room
    line: Line
    drain: Drain

    def drained_ms(self) -> float:
        """Until all that wait have been let through."""
        return self.room.opens_ms + self._longest_turn_ms()

    def expected_ms(self, entry: Entry) -> float:
        """From now to its first token."""
        return self._turn_ms(entry) + self.room.soonest_ms + self.room.service_ms(entry.ask)

    def refusal(self, entry: Entry, *, at_once: bool) -> Refuse | None:
        """Of a newcomer whose limit cannot be kept. It would be, once the queue had drained by what is missing.

        Args:
            at_once: it need not wait; then its deadline is its own affair.
        """
        turn_ms = 0.0 if at_once else self._longest_turn_ms()
        if self._lateness(entry, turn_ms, at_once=at_once) is None:
            return None  # as a rule, and without counting who is ahead
        turn_ms = 0.0 if at_once else self._turn_ms(entry)
        late = self._lateness(entry, turn_ms, at_once=at_once)
        return late and Refuse(entry, late[0], self.expected_ms(entry), late[1])

    def ttft_excess_ms(self, entry: Entry, turn_ms: float = 0.0) -> float:
        """By how much its first token would be late, if its turn came in `turn_ms`; at most 0 if it would not.

        Where a worker is idle nobody is refused, however long a prompt seems to take: only trying shows whether that is
        still so.
        """
        if entry.ask.ttft_limit_ms == inf or (not turn_ms and not self.room.soonest_ms):
            return 0.0
        expected_ms = turn_ms + self.room.soonest_ms + self.room.service_ms(entry.ask)
        return self.now_ms + expected_ms - entry.arrived_ms - entry.ask.ttft_limit_ms

    def _lateness(self, entry: Entry, turn_ms: float, *, at_once: bool) -> tuple[Reason, float] | None:
        """Which limit is not kept, and by how many milliseconds."""
        if (late_ms := self.ttft_excess_ms(entry, turn_ms)) > 0:
            return Reason.TTFT_LIMIT, late_ms
        if not at_once and (late_ms := self.now_ms + turn_ms - entry.ask.deadline_ms) > 0:
            return Reason.DEADLINE, late_ms
        return None

    def _turn_ms(self, entry: Entry) -> float:
        """Until those before it have been let through, beyond the work that workers have now."""
        return self._factor * self.room.drain_ms(self.line.ahead_of(entry)) if self.line else 0.0

    def _longest_turn_ms(self) -> float:
        """The same behind everybody."""
        return self._factor * self.room.drain_ms(self.line.load) if self.line else 0.0

    @property
    def _factor(self) -> float:
        return self.drain.factor(self.now_ms)
