"""Times between tokens, millions of them, as (gap, how often)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt


class Gaps:
    def __init__(self) -> None:
        self._gaps_ns = array("q")
        self._counts = array("i")

    def add(self, gap_ns: int, count: int = 1) -> None:
        self._gaps_ns.append(gap_ns)
        self._counts.append(count)

    def add_run(self, ends_ns: Sequence[int], count: int) -> None:
        """`count` sequences got a token at each of these times; what lies before the first is not in it."""
        self._gaps_ns.extend([after - before for before, after in pairwise(ends_ns)])
        self._counts.extend([count] * (len(ends_ns) - 1))

    @property
    def total(self) -> int:
        return sum(self._counts)

    def sorted_ms(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The different gaps in rising order, [n] ms, and how often each was, [n]."""
        gaps, inverse = np.unique(np.frombuffer(self._gaps_ns, np.int64), return_inverse=True)
        counts = np.zeros(len(gaps), np.int64)
        np.add.at(counts, inverse, np.frombuffer(self._counts, np.int32))
        return gaps / 1e6, counts
