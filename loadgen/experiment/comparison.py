"""Whether a pair of pools beats as many colocated workers under the same load. Pure.

Both met the same arrivals and lengths seed by seed, so the interval is over the differences of pairs, of which both
runs have to be valid. Where runs are short a request's share is coarse, and a few differences are equal by chance:
nothing is claimed of fewer than `MIN_PAIRS`, and the spread of a difference is at least that of one request more or
less in each run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadgen.experiment.analysis import Measured
from loadgen.experiment.cells import colocated
from loadgen.report.intervals import Interval, paired_interval

Verdict = Literal["pays", "loses", "same", "unclear", "neither"]
SAME = 0.05  # of the larger goodput: a difference surely below this is none
MIN_PAIRS = 3  # of two, Student's t has one degree of freedom: all that is left of a spread is luck


@dataclass(frozen=True, slots=True)
class Comparison:
    """A pair of pools against as many colocated workers, under the same load."""

    disaggregated: Measured
    colocated: Measured
    in_time: tuple[float, float] | None  # mean share of the requests, of either; None: no seed has two valid runs
    difference: float | None  # of goodput, disaggregated less colocated, as a share of the larger one's mean
    interval: Interval | None  # likewise, within -1 and 1
    num_pairs: int  # seeds with two valid runs
    verdict: Verdict


def comparisons(cells: Sequence[Measured]) -> list[Comparison]:
    by_cell = {each.cell: each for each in cells}
    pairs = [(each, by_cell.get(colocated(each.cell))) for each in cells if each.cell.prefill]
    return [_compare(each, other) for each, other in pairs if other is not None]


def _compare(ours: Measured, theirs: Measured) -> Comparison:
    seeds = [seed for seed in ours.goodput if seed in theirs.goodput]
    if not seeds:
        return Comparison(ours, theirs, None, None, None, 0, "unclear")
    in_time = (_mean(ours.attained, seeds), _mean(theirs.attained, seeds))
    larger = max(_mean(ours.goodput, seeds), _mean(theirs.goodput, seeds))
    if not larger:
        return Comparison(ours, theirs, in_time, 0.0, None, len(seeds), "neither")
    differences = [(ours.goodput[seed] - theirs.goodput[seed]) / larger for seed in seeds]
    one_request = max(math.hypot(ours.one_request[seed], theirs.one_request[seed]) for seed in seeds) / larger
    interval = _within(paired_interval(differences, one_request))
    verdict = _verdict(interval, len(seeds))
    return Comparison(ours, theirs, in_time, float(np.mean(differences)), interval, len(seeds), verdict)


def _mean(of: dict[int, float], seeds: Sequence[int]) -> float:
    return float(np.mean([of[seed] for seed in seeds]))


def _within(interval: Interval | None) -> Interval | None:
    return Interval(max(-1.0, interval.low), min(1.0, interval.high)) if interval else None


def _verdict(interval: Interval | None, num_pairs: int) -> Verdict:
    if interval is None or num_pairs < MIN_PAIRS:
        return "unclear"
    if max(abs(interval.low), abs(interval.high)) <= SAME:
        return "same"
    return "pays" if interval.low > 0 else "loses" if interval.high < 0 else "unclear"
