"""How sure a figure is: 95 % confidence intervals over repeats of a run, or inside one.

Repeats with different seeds are independent: Student's t over their figures. Inside one run neighbours are not
independent (they waited in one queue), so whole stretches of the run are drawn again, not single requests: a circular
block bootstrap (Politis and Romano, 1992), percentile method, twenty stretches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 400
STRETCHES = 20
MIN_VALUES = 40  # two a stretch
# Student's t, 97.5 %, for 1 to 30 degrees of freedom (standard tables); beyond, the normal distribution's 1.96 is near.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Interval(msgspec.Struct, frozen=True):
    low: float
    high: float


def t_interval(values: Sequence[float], least_spread: float = 0.0) -> Interval | None:
    """Of the mean of independent repeats; none for fewer than two.

    Args:
        least_spread: standard deviation that one repeat has at least, whatever the values seem to say.
    """
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    t = T_975[len(values) - 2] if len(values) - 1 <= len(T_975) else 1.96
    half = t * max(least_spread, float(np.std(values, ddof=1))) / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def paired_interval(differences: Sequence[float], least_spread: float = 0.0) -> Interval | None:
    """Of the mean of independent differences, each of two runs under the same traffic; none for fewer than two.

    Few short runs agree by chance: two differences of 1/3 each have no spread, and Student's t over them no width. So
    the spread is taken to be no less than what one request more or less in time would make of it.

    Args:
        least_spread: of one difference, standard deviation; `one_request` says it for shares.
    """
    return t_interval(differences, least_spread)


def one_request(num_requests: int) -> float:
    """The least spread of a difference between two shares of so many requests: one more or less in time, in each."""
    return math.sqrt(2.0) / num_requests if num_requests else math.inf


def block_bootstrap(values: Values, figures: Callable[[Values], Values], seed: int = 0) -> list[Interval] | None:
    """Intervals of several figures of one series.

    Args:
        values: (n,) or (n, columns), in order of time.
        figures: from such an array to (figures,).

    Returns:
        One interval for each figure; none for fewer than `MIN_VALUES` values.
    """
    size = len(values)
    if size < MIN_VALUES:
        return None
    rng = np.random.default_rng(seed)
    length = -(-size // STRETCHES)
    offsets = np.arange(length)
    found = []
    for _ in range(RESAMPLES):
        starts = rng.integers(0, size, -(-size // length))
        index = (starts[:, None] + offsets).ravel()[:size] % size
        found.append(figures(values[index]))
    low, high = np.percentile(np.asarray(found), (2.5, 97.5), axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]
