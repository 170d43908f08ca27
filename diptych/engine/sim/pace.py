"""Makes the steps of a simulated engine last as long as its timing model says, by sleeping what is left of them.

A step that goes on where the last one ended began, by the model, at that one's end: so what the engine does between
two steps, and what a sleep takes too long, are part of the steps and not on top of them, and a hundred steps take a
hundred times as long as one. Sleeping is never busy: on an idle Linux machine a sleep ends some 60 us late, which the
next step makes up for.

Knows nothing about what steps compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from diptych.engine.interface import Row
from diptych.engine.sim.timing import TimingModel, shape_of

AT_ONCE_S = 1e-3  # steps closer than this follow each other, whoever is in them
MAX_MADE_UP_S = 0.05  # of lateness; a process that was stopped for longer does not hurry afterwards


class Pace:
    """`begin` and `end` are called around each step's computation, from one thread.

    Attributes:
        num_steps, num_late: so far; late steps computed for longer than they were to last.
    """

    def __init__(
        self,
        timing: TimingModel,
        on_late: Callable[[float], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            on_late: told how many ms too long a step has taken to compute. This machine cannot play the model then.
        """
        self.num_steps = self.num_late = 0
        self._timing = timing
        self._on_late = on_late
        self._sleep = sleep
        self._clock = clock
        self._began = self._due = 0.0  # of the present or last step, by the model; seconds
        self._returned = float("-inf")
        self._members: set[int] = set()  # sequences of the last step

    def begin(self, rows: Sequence[Row]) -> None:
        now, members = self._clock(), {row.sequence_id for row in rows}
        follows = bool(members & self._members) or now - self._returned < AT_ONCE_S
        self._began = max(self._due, now - MAX_MADE_UP_S) if follows else now
        self._members = members

    def end(self, rows: Sequence[Row]) -> None:
        if rows:
            self.num_steps += 1
            self._due = self._began + self._timing.step_ms(shape_of(rows)) / 1e3
            left_s = self._due - self._clock()
            if left_s > 0:
                self._sleep(left_s)
            else:
                self.num_late += 1
                self._on_late(-1e3 * left_s)
        self._returned = self._clock()
