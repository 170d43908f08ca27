"""Steps last as long as the timing model says, whatever the engine does around them. On a clock that only sleeping, and
what a test says was computed, move."""

from diptych.engine.interface import Row
from diptych.engine.sim.pace import MAX_MADE_UP_S, Pace
from diptych.engine.sim.timing import FixedTiming


class Machine:
    def __init__(self, overshoot_s: float = 0.0) -> None:
        self.now = 0.0
        self.late_ms: list[float] = []
        self._overshoot_s = overshoot_s
        self.pace = Pace(FixedTiming(50.0, 10.0), self.late_ms.append, self._sleep, lambda: self.now)

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self._overshoot_s

    def step(self, *sequences: int, computing_s: float = 0.0, before_s: float = 0.0) -> float:
        """A prompt's chunk of each sequence; returns how long it took, in ms."""
        self.now += before_s
        began, rows = self.now, [Row(sequence, [1, 2], 0, [0]) for sequence in sequences]
        self.pace.begin(rows)
        self.now += computing_s
        self.pace.end(rows)
        return round((self.now - began) * 1e3, 6)


def test_what_is_computed_is_part_of_the_step() -> None:
    machine = Machine()
    assert machine.step(1, computing_s=0.02) == 50
    assert machine.late_ms == []


def test_what_the_engine_does_between_steps_is_part_of_them() -> None:
    machine = Machine(overshoot_s=1e-4)
    for _ in range(100):
        machine.step(1, before_s=3e-3)
    assert abs(machine.now - 100 * 0.05) < 5e-3


def test_a_step_after_a_rest_begins_when_it_begins() -> None:
    machine = Machine()
    machine.step(1)
    assert machine.step(2, before_s=5e-3) == 50  # somebody else's, and not at once
    assert machine.step(3, before_s=5e-4) == 49.5  # at once: it was waiting
    assert machine.step(3, before_s=0.03) == 20  # the same sequence goes on


def test_a_machine_that_is_too_slow_says_so_and_does_not_hurry_for_ever() -> None:
    machine = Machine()
    assert machine.step(1, computing_s=0.08) == 80
    assert [round(ms, 6) for ms in machine.late_ms] == [30]
    machine.step(1, computing_s=4.0)  # the process was stopped
    assert machine.step(1) == 0  # what is made up is at most ...
    assert abs(MAX_MADE_UP_S - 0.05) < 1e-9  # ... one such step
    assert machine.step(1) == 50
    assert (machine.pace.num_steps, machine.pace.num_late) == (4, 3)
