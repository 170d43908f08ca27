"""How long a trial will still take, said at the start of each block, from its own runs and changes so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from loadgen.experiment.eta import Forecast, in_words
from loadgen.experiment.shape import Shape
from loadgen.falsify.design import Design


class Progress:
    """
    Args:
        planned_s: for how long a run of each block sends.
    """

    def __init__(self, design: Design, planned_s: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._design = design
        self._planned_s = planned_s
        self._clock = clock
        self._forecast = Forecast()
        self._began_s = 0.0
        self._num_changes = 0

    def words(self, number: int, shape: Shape | None) -> str:
        """
        Args:
            number: of the block that begins, from 0.
            shape: that the system has now.
        """
        letters = "".join(self._design.orders[number:])
        shapes = [shape, *(self._design.arms["AB".index(letter)].shape for letter in letters)]
        changes = sum(after != before for before, after in pairwise(shapes))
        planned = [each for each in self._planned_s[number:] for _ in self._design.arms]
        left = in_words(self._forecast.left_s(planned, changes))
        return f"block {number + 1} of {self._design.num_blocks}, {self._design.orders[number]}: about {left} left"

    def begins(self) -> None:
        """A change of shape, or a run."""
        self._began_s = self._clock()

    def changed(self) -> None:
        """The first change is a start also where later ones only scale, so it says nothing about them."""
        self._num_changes += 1
        if self._num_changes > 1:
            self._forecast.shaped(self._clock() - self._began_s)

    def ran(self, number: int) -> None:
        self._forecast.ran(self._planned_s[number], self._clock() - self._began_s)
