"""How long an experiment will still take, from how long it has taken so far. Pure but for the clock it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FIRST_SHAPE_S = 20.0  # until one was timed
FIRST_RUN_FACTOR = 1.3  # of what a run is planned to send: answers are waited for


@dataclass
class Forecast:
    """Runs take their planned time times a factor, changes of shape a mean; both are learnt from what is over."""

    planned_s: float = 0.0
    took_s: float = 0.0
    shapes_s: list[float] = field(default_factory=list)

    def ran(self, planned_s: float, took_s: float) -> None:
        self.planned_s += planned_s
        self.took_s += took_s

    def shaped(self, took_s: float) -> None:
        self.shapes_s.append(took_s)

    def left_s(self, planned_s: Sequence[float], num_shapes: int) -> float:
        """
        Args:
            planned_s: of the runs that are left.
            num_shapes: changes of shape that are left.
        """
        factor = self.took_s / self.planned_s if self.planned_s else FIRST_RUN_FACTOR
        each = sum(self.shapes_s) / len(self.shapes_s) if self.shapes_s else FIRST_SHAPE_S
        return factor * sum(planned_s) + each * num_shapes


def in_words(seconds: float) -> str:
    """`45 s`, `7 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
