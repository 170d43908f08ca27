"""Any interleaving of arrivals, placements, ends, cancels and passing time: nobody is lost, bounds and order hold."""

from __future__ import annotations

from admission_world import AdmissionWorld
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.admission.line import PATIENT_MS, POINT_MS, Entry, Stage

MAX_QUEUED, MAX_IN_FLIGHT = 4, 5
limits_ms = st.one_of(st.just(float("inf")), st.floats(1, 3_000))


class AdmissionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = AdmissionWorld(
            2, 2, slots=2, max_queued=MAX_QUEUED, max_in_flight=MAX_IN_FLIGHT, remote_prefill="auto"
        )
        self.entries: list[Entry] = []
        self.num_gone = 0  # of `world.going`, looked at
        self.cancelled: set[Entry] = set()

    @rule(
        num_tokens=st.integers(1, 300),
        priority=st.integers(-2, 2),
        tenant=st.sampled_from("ab"),
        ttft_limit_ms=limits_ms,
        left_ms=st.floats(1, 10_000),
    )
    def arrive(self, num_tokens: int, priority: int, tenant: str, ttft_limit_ms: float, left_ms: float) -> None:
        world = self.world
        deadline_ms = world.now_ms + left_ms
        ask = {"priority": priority, "tenant": tenant, "ttft_limit_ms": ttft_limit_ms}
        entry = world.arrive(num_tokens, deadline_ms=deadline_ms, **ask)
        self.entries.append(entry)
        self.look_at_order()

    @rule(data=st.data())
    @precondition(lambda self: self.unplaced)
    def place(self, data: st.DataObject) -> None:
        self.world.place(data.draw(st.sampled_from(self.unplaced)))
        self.wake()

    @rule(data=st.data())
    @precondition(lambda self: self.of(Stage.PLACED))
    def first_token(self, data: st.DataObject) -> None:
        self.world.first_token(data.draw(st.sampled_from(self.of(Stage.PLACED))))
        self.look_at_order()

    @rule(data=st.data())
    @precondition(lambda self: self.alive)
    def end(self, data: st.DataObject) -> None:
        """It is complete, failed, or its client has gone, wherever it stood."""
        entry = data.draw(st.sampled_from(self.alive))
        self.cancelled.add(entry)
        self.world.end(entry)
        self.look_at_order()

    @rule(ms=st.floats(0.1, 2_000))
    def pass_time(self, ms: float) -> None:
        self.world.now_ms += ms
        self.wake()
        due = self.world.core.next_due_ms
        assert due is None or due > self.world.now_ms

    @rule()
    def change_fleet(self) -> None:
        self.world.prefills = ["p0", "p1"] if len(self.world.prefills) == 1 else ["p0"]
        self.wake()

    def wake(self) -> None:
        self.world.wake()
        self.look_at_order()

    @property
    def unplaced(self) -> list[Entry]:
        return self.of(Stage.GRANTED)

    @property
    def alive(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.stage is not Stage.OVER]

    def of(self, stage: Stage) -> list[Entry]:
        return [entry for entry in self.entries if entry.stage is stage]

    def look_at_order(self) -> None:
        """Those that just went had the best rank of their tenant, so nobody is overtaken by who came much later.

        But for those that use no prefill worker.
        """
        going, self.num_gone = self.world.going[self.num_gone :], len(self.world.going)
        going = [entry for entry in going if entry not in self.world.alone]
        for went in going:
            for waits in self.of(Stage.QUEUED):
                if waits.ask.tenant == went.ask.tenant:
                    assert went.rank < waits.rank
                    points = max(0, went.ask.priority - waits.ask.priority)
                    assert went.arrived_ms - waits.arrived_ms <= POINT_MS * points + PATIENT_MS

    @invariant()
    def books_add_up(self) -> None:
        self.world.core.check()
        assert self.world.core.num_queued == len(self.of(Stage.QUEUED))
        assert self.world.core.num_in_flight == len(self.alive) - len(self.of(Stage.QUEUED))

    @invariant()
    def nobody_is_lost(self) -> None:
        """Who is over was refused or has left; who goes or waits was not refused; nobody is told twice."""
        world = self.world
        assert len(set(world.going)) == len(world.going)
        for entry in self.entries:
            assert (entry in world.refused) + (entry in world.going) <= 1
            assert (entry.stage is Stage.OVER) == (entry in world.refused or entry in self.cancelled)

    @invariant()
    def nobody_waits_while_all_are_idle(self) -> None:
        world = self.world
        if not world.core.num_in_flight:
            assert not world.core.num_queued

    def teardown(self) -> None:
        """Whatever had happened, everybody gets a turn."""
        for _ in range(len(self.entries) + 1):
            self.world.place_all()
            for entry in self.alive:
                if entry.stage is not Stage.QUEUED:
                    self.cancelled.add(entry)
                    self.world.end(entry)
        assert not self.alive
        self.world.core.check()
        assert (self.world.core.num_queued, self.world.core.num_in_flight) == (0, 0)


AdmissionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_admission_machine = AdmissionMachine.TestCase
