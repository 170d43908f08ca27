"""Who is placed now, who waits, and who is refused at once: the decisions, without a clock, socket or event loop.

Events come in with the time and the fleet's room of that moment; `Go` and `Refuse` come out. Whoever asks must tell
what follows: `placed`, `prefilled` and, whatever happens, `leave`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from router.admission.ask import AdmissionLimits, Ask, Decision, Go, Reason, Refuse
from router.admission.drain import Drain, Streams
from router.admission.forecast import Forecast
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
        entry, now = Entry(ask, now_ms, self._num_arrived), self._forecast(now_ms)
        at_once = not self._line and self._may_go(now.room)
        if (refusal := now.refusal(entry, at_once=at_once)) is not None:
            return entry, [refusal]
        if at_once:
            entry.stage = Stage.GRANTED
            self._grant()
            return entry, [Go(entry)]
        decisions: list[Decision] = []
        if len(self._line) >= self._limits.max_queued:
            victim = self._line.to_shed(entry)
            if victim is None:
                return entry, [Refuse(entry, Reason.QUEUE_FULL, now.expected_ms(entry), now.drained_ms())]
            decisions.append(self._refuse(victim, Reason.SHED, now))
        self._queue(entry, now)
        return entry, decisions + self._let_through(now)

    def wake(self, now_ms: float) -> list[Decision]:
        """Something has changed (a request, a worker's report, the fleet) or the time of `next_due_ms` has come."""
        if not self._line:
            return []
        now = self._forecast(now_ms)
        return self._expire(now) + self._let_through(now)

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
        return self._forecast(now_ms).drained_ms()

    def check(self) -> None:
        """Raises AssertionError where the books do not add up."""
        self._line.check()
        assert self.num_queued <= self._limits.max_queued
        assert 0 <= self._num_granted <= self.num_in_flight <= self._limits.max_in_flight
        assert all(count > 0 for count in self._prefilling.values())
        assert sum(self._prefilling.values()) <= self.num_in_flight - self._num_granted

    # --- deciding -----------------------------------------------------------------------------------------------------

    def _forecast(self, now_ms: float) -> Forecast:
        limits, end_ms = self._limits, self._streams.end_ms(now_ms)
        room = Room(self._views(), limits.max_worker_queue_ms, limits.remote_prefill, self._prefilling, end_ms)
        return Forecast(now_ms, room, self._line, self._drain)

    def _queue(self, entry: Entry, now: Forecast) -> None:
        if not self._line:
            self._drain.began(now.room.drain_ms(Load(entry.ask.num_tokens, 1)), now.now_ms)
            self._streams.queue_began(now.now_ms)
        self._line.add(entry)

    def _may_go(self, room: Room) -> bool:
        return self.num_in_flight < self._limits.max_in_flight and room.takes(self._num_granted)

    def _let_through(self, now: Forecast) -> list[Decision]:
        """For as long as there is room."""
        decisions: list[Decision] = []
        while (go := self._next(now.room)) is not None:
            entry = go.entry
            if now.ttft_excess_ms(entry) > 0:
                decisions.append(self._refuse(entry, Reason.TTFT_LIMIT, now))
                continue
            self._drain.went(now.room.drain_ms(Load(entry.ask.num_tokens, 1)), now.now_ms)
            self._line.serve(entry, now.room.work_ms(entry.ask.num_tokens))
            self._grant()
            decisions.append(go)
        if not self._line:
            self._drain.ended()
        return decisions

    def _next(self, room: Room) -> Go | None:
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

    def _expire(self, now: Forecast) -> list[Decision]:
        expired: list[Decision] = []
        while (entry := self._line.first_due()) is not None and entry.due_ms <= now.now_ms:
            reason = Reason.DEADLINE if entry.ask.deadline_ms <= now.now_ms else Reason.TTFT_LIMIT
            expired.append(self._refuse(entry, reason, now, late=True))
        return expired

    def _refuse(self, entry: Entry, reason: Reason, now: Forecast, *, late: bool = False) -> Refuse:
        """One that waits ends here. It may come again when those that wait now have had their turn."""
        self._remove(entry)
        own_ms = now.room.soonest_ms + now.room.service_ms(entry.ask)
        return Refuse(entry, reason, own_ms, now.drained_ms(), late)

    def _remove(self, entry: Entry) -> None:
        self._line.remove(entry, Stage.OVER)
        if not self._line:
            self._drain.ended()

    def _forget_decode(self, entry: Entry, now_ms: float) -> None:
        """What it did there so far, if anything, is over."""
        if entry.stage is Stage.STREAMING:
            self._streams.ended(entry.first_token_ms, now_ms, others_wait=bool(self._line))
        elif entry.stage is Stage.PLACED:
            self._prefilling[entry.decode_id] -= 1
            if not self._prefilling[entry.decode_id]:
                del self._prefilling[entry.decode_id]
