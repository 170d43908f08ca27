"""Confidence intervals of a mean over a few seeds: Student's t, two-sided, 95 %."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

import msgspec

# 97.5 % quantiles of Student's t by degrees of freedom, from any table of it; beyond 30 the normal one is close enough.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.960


class Interval(msgspec.Struct, frozen=True):
    mean: float
    low: float  # equal to `mean` if there is only one sample: nothing is known
    high: float
    num_samples: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {(self.high - self.low) / 2:.2g}"


def interval(samples: Sequence[float]) -> Interval:
    """The 95 % confidence interval of the mean of independent samples.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("an interval needs at least one sample")
    mean, degrees = fmean(samples), len(samples) - 1
    if not degrees:
        return Interval(mean, mean, mean, 1)
    half = (_T[degrees - 1] if degrees <= len(_T) else _NORMAL) * stdev(samples) / len(samples) ** 0.5
    return Interval(mean, mean - half, mean + half, len(samples))
