"""Who is placed now, who waits, and who is refused at once: the decisions, without a clock, socket or event loop.

Events come in with the time and the fleet's room of that moment; `Go` and `Refuse` come out. Whoever asks must tell
what follows: `placed`, `prefilled` and, whatever happens, `leave`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf

from router.admission.ask import AdmissionLimits, Ask, Decision, Go, Reason, Refuse
from router.admission.drain import Drain, Streams
from router.admission.line import Entry, Line, Load, Stage
from router.admission.room import Room
from router.placement import WorkerView

Views = Callable[[], Sequence[WorkerView]]


class Admission:
    """Attributes: num_in_flight: requests that were let through and have not left."""

    def __init__(self, limits: AdmissionLimits, views: Views) -> None:
        """
        Args:
            views: every placeable worker as it is now, with all that is booked on it.
        """
        self._limits = limits
        self._views = views
        self._line = Line()
        self._drain, self._streams = Drain(), Streams()
        self._prefilling: Counter[str] = Counter()  # placed, without a first token: by decode worker
        self._num_arrived = 0
        self._num_granted = 0
        self.num_in_flight = 0

    # --- events -------------------------------------------------------------------------------------------------------

    def arrive(self, ask: Ask, now_ms: float) -> tuple[Entry, list[Decision]]:
        """A request comes. Nothing decided about it: it waits."""
        self._num_arrived += 1
        entry = Entry(ask, now_ms, self._num_arrived)
        room = self._room(now_ms)
        at_once = not self._line and self._may_go(room)
        if (refusal := self._hopeless(entry, room, now_ms, at_once=at_once)) is not None:
            return entry, [refusal]
        if at_once:
            entry.stage = Stage.GRANTED
            self._grant()
            return entry, [Go(entry)]
        decisions: list[Decision] = []
        if len(self._line) >= self._limits.max_queued:
            victim = self._line.to_shed(entry)
            if victim is None:
                drained_ms = self._wait_ms(self._line.load, room, now_ms)
                return entry, [Refuse(entry, Reason.QUEUE_FULL, self._expected_ms(entry, room, now_ms), drained_ms)]
            decisions.append(self._refuse(victim, Reason.SHED, room, now_ms))
        if not self._line:
            self._drain.began(room.drain_ms(Load(ask.num_tokens, 1)), now_ms)
            self._streams.queue_began(now_ms)
        self._line.add(entry)
        return entry, decisions + self._let_through(room, now_ms)

    def wake(self, now_ms: float) -> list[Decision]:
        """Something has changed (a request, a worker's report, the fleet) or the time of `next_due_ms` has come."""
        if not self._line:
            return []
        room = self._room(now_ms)
        return self._expire(room, now_ms) + self._let_through(room, now_ms)

    def placed(self, entry: Entry, decode_id: str, now_ms: float) -> None:
        """It is booked on its workers; once more for each further attempt."""
        if entry.stage is Stage.GRANTED:
            self._num_granted -= 1
        self._forget_decode(entry, now_ms)
        entry.stage, entry.decode_id = Stage.PLACED, decode_id
        self._prefilling[decode_id] += 1

    def prefilled(self, entry: Entry, now_ms: float) -> bool:
        """Its first token is there. Whether that is news."""
        if entry.stage is not Stage.PLACED:
            return False
        self._forget_decode(entry, now_ms)
        entry.stage, entry.first_token_ms = Stage.STREAMING, now_ms
        self._streams.began(now_ms)
        return True

    def leave(self, entry: Entry, now_ms: float) -> None:
        """It is over, however it ended and wherever it stood. Idempotent."""
        if entry.stage is Stage.OVER:
            return
        if entry.stage is Stage.QUEUED:
            self._remove(entry)
            return
        if entry.stage is Stage.GRANTED:
            self._num_granted -= 1
        self._forget_decode(entry, now_ms)
        self.num_in_flight -= 1
        entry.stage = Stage.OVER

    # --- what others want to know -------------------------------------------------------------------------------------

    @property
    def num_queued(self) -> int:
        return len(self._line)

    @property
    def num_queued_tokens(self) -> int:
        """Of prompts, to compute."""
        return self._line.num_tokens

    def queued_priorities(self) -> list[int]:
        return [entry.ask.priority for entry in self._line]

    @property
    def next_due_ms(self) -> float | None:
        """When `wake` has to be called at the latest."""
        entry = self._line.first_due()
        return None if entry is None else entry.due_ms

    def drained_in_ms(self, now_ms: float) -> float:
        """Until everybody who waits now has been let through, as things are."""
        return self._wait_ms(self._line.load, self._room(now_ms), now_ms)

    def check(self) -> None:
        """Raises AssertionError where the books do not add up."""
        self._line.check()
        assert self.num_queued <= self._limits.max_queued
        assert 0 <= self._num_granted <= self.num_in_flight <= self._limits.max_in_flight
        assert all(count > 0 for count in self._prefilling.values())
        assert sum(self._prefilling.values()) <= self.num_in_flight - self._num_granted

    # --- deciding -----------------------------------------------------------------------------------------------------

    def _room(self, now_ms: float) -> Room:
        limits, end_ms = self._limits, self._streams.end_ms(now_ms)
        return Room(self._views(), limits.max_worker_queue_ms, limits.remote_prefill, self._prefilling, end_ms)

    def _may_go(self, room: Room) -> bool:
        return self.num_in_flight < self._limits.max_in_flight and room.takes(self._num_granted)

    def _let_through(self, room: Room, now_ms: float) -> list[Decision]:
        """For as long as there is room."""
        decisions: list[Decision] = []
        while (go := self._next(room, now_ms)) is not None:
            entry = go.entry
            if self._ttft_excess_ms(entry, 0.0, room, now_ms) > 0:
                decisions.append(self._refuse(entry, Reason.TTFT_LIMIT, room, now_ms))
                continue
            self._drain.went(room.drain_ms(Load(entry.ask.num_tokens, 1)), now_ms)
            self._line.serve(entry, room.work_ms(entry.ask.num_tokens))
            self._grant()
            decisions.append(go)
        if not self._line:
            self._drain.ended()
        return decisions

    def _next(self, room: Room, now_ms: float) -> Go | None:
        """Who goes now: the first in line; or the shortest prompt, where decode alone can have it sooner.

        The others go on waiting for prefill workers, which they do not lose by it, and the shortest prompt disturbs
        those that decode there the least.
        """
        first, shortest = self._line.first(), self._line.shortest()
        if first is None or shortest is None or self.num_in_flight >= self._limits.max_in_flight:
            return None
        if room.takes(self._num_granted):
            return Go(first)
        behind_ms = room.work_ms(self._line.num_tokens - shortest.ask.num_tokens)
        if not self._num_granted and room.takes_alone(shortest.ask, behind_ms):
            return Go(shortest, alone=True)
        return None

    def _grant(self) -> None:
        self._num_granted += 1
        self.num_in_flight += 1

    def _expire(self, room: Room, now_ms: float) -> list[Decision]:
        expired: list[Decision] = []
        while (entry := self._line.first_due()) is not None and entry.due_ms <= now_ms:
            late = Reason.DEADLINE if entry.ask.deadline_ms <= now_ms else Reason.TTFT_LIMIT
            expired.append(self._refuse(entry, late, room, now_ms, late=True))
        return expired

    def _hopeless(self, entry: Entry, room: Room, now_ms: float, *, at_once: bool) -> Refuse | None:
        """A newcomer whose limit cannot be kept. It would be, once the queue had drained by what is missing."""
        if at_once:
            late_ms = self._ttft_excess_ms(entry, 0.0, room, now_ms)
            return Refuse(entry, Reason.TTFT_LIMIT, late_ms + entry.ask.ttft_limit_ms, late_ms) if late_ms > 0 else None
        turn_ms = self._turn_ms(entry, room, now_ms)
        for reason, late_ms in (
            (Reason.TTFT_LIMIT, self._ttft_excess_ms(entry, turn_ms, room, now_ms)),
            (Reason.DEADLINE, now_ms + turn_ms - entry.ask.deadline_ms),
        ):
            if late_ms > 0:
                return Refuse(entry, reason, self._expected_ms(entry, room, now_ms), late_ms)
        return None

    def _ttft_excess_ms(self, entry: Entry, turn_ms: float, room: Room, now_ms: float) -> float:
        """By how much its first token would be late, if its turn came in `turn_ms`; at most 0 if it would not.

        Where a worker is idle nobody is refused, however long a prompt seems to take: only trying shows whether that is
        still so.
        """
        if entry.ask.ttft_limit_ms == inf or (not turn_ms and not room.soonest_ms):
            return 0.0
        expected_ms = turn_ms + room.soonest_ms + room.service_ms(entry.ask)
        return now_ms + expected_ms - entry.arrived_ms - entry.ask.ttft_limit_ms

    def _refuse(self, entry: Entry, reason: Reason, room: Room, now_ms: float, *, late: bool = False) -> Refuse:
        """One that waits ends here. It would have had its turn when those before it have had theirs."""
        expected_ms = self._expected_ms(entry, room, now_ms)
        self._remove(entry)
        retry_after_ms = self._wait_ms(self._line.load, room, now_ms)
        return Refuse(entry, reason, expected_ms, retry_after_ms, late)

    def _remove(self, entry: Entry) -> None:
        self._line.remove(entry, Stage.OVER)
        if not self._line:
            self._drain.ended()

    def _turn_ms(self, entry: Entry, room: Room, now_ms: float) -> float:
        """Until those before it have been let through, beyond the work that workers have now."""
        return self._factor(now_ms) * room.drain_ms(self._line.ahead_of(entry)) if self._line else 0.0

    def _expected_ms(self, entry: Entry, room: Room, now_ms: float) -> float:
        """From now to its first token."""
        return self._turn_ms(entry, room, now_ms) + room.soonest_ms + room.service_ms(entry.ask)

    def _wait_ms(self, load: Load, room: Room, now_ms: float) -> float:
        """Until so much of what waits has been let through."""
        return room.opens_ms + self._factor(now_ms) * room.drain_ms(load)

    def _factor(self, now_ms: float) -> float:
        return self._drain.factor(now_ms)

    def _forget_decode(self, entry: Entry, now_ms: float) -> None:
        """What it did there so far, if anything, is over."""
        if entry.stage is Stage.STREAMING:
            self._streams.ended(entry.first_token_ms, now_ms, others_wait=bool(self._line))
        elif entry.stage is Stage.PLACED:
            self._prefilling[entry.decode_id] -= 1
            if not self._prefilling[entry.decode_id]:
                del self._prefilling[entry.decode_id]
