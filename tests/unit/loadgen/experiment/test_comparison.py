"""Whether pools pay: claimed of enough pairs of valid runs, and never for want of spread."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from experiments import experiment, run_with

from loadgen.experiment.analysis import measured
from loadgen.experiment.comparison import Comparison, comparisons
from loadgen.experiment.maps import comparison_table
from loadgen.experiment.spec import Sweep
from loadgen.report.intervals import one_request, paired_interval, t_interval

SWEEP = Sweep(
    mode=["disaggregated", "colocated"], prefill=[1], decode=[1], input_tokens=[64], output_tokens=[8], rate=[10.0]
)
PAIR, BOTH = msgspec.structs.replace(experiment(), sweep=SWEEP).sweep.made()


def compared(ours: Sequence[float], theirs: Sequence[float], requests: int, late: Sequence[int] = ()) -> Comparison:
    """Attainments by seed; runs of the seeds in `late` are invalid for the pair."""
    runs = [
        run_with(cell, seed, share, requests=requests, valid=not (cell == PAIR and seed in late))
        for cell, shares in ((PAIR, ours), (BOTH, theirs))
        for seed, share in enumerate(shares, 1)
    ]
    (found,) = comparisons(measured(runs))
    return found


def test_equal_differences_of_few_requests_claim_nothing() -> None:
    for seeds in (2, 3, 5):
        found = compared([1.0] * seeds, [2 / 3] * seeds, requests=3)
        assert found.verdict == "unclear"
        assert found.difference == pytest.approx(1 / 3)
        assert found.interval is not None
        assert found.interval.low < 0


def test_two_seeds_claim_nothing() -> None:
    assert compared([1.0] * 2, [0.0] * 2, requests=1_000).verdict == "unclear"
    assert compared([1.0] * 3, [0.0] * 3, requests=1_000).verdict == "pays"


def test_what_is_plain_is_claimed_of_few_requests_too() -> None:
    assert compared([1.0] * 3, [0.0] * 3, requests=10).verdict == "pays"
    assert compared([0.0] * 3, [1.0] * 3, requests=10).verdict == "loses"
    assert compared([0.0] * 3, [0.0] * 3, requests=10).verdict == "neither"
    assert compared([1.0] * 3, [1.0] * 3, requests=100).verdict == "same"
    assert compared([1.0] * 3, [1.0] * 3, requests=10).verdict == "unclear"


def test_pairs_need_two_valid_runs() -> None:
    found = compared([0.0, 1.0, 1.0, 1.0], [0.5] * 4, requests=100, late=[1])
    assert (found.num_pairs, found.in_time, found.verdict) == (3, (1.0, 0.5), "pays")
    nothing = compared([1.0] * 3, [0.5] * 3, requests=100, late=[1, 2, 3])
    assert (nothing.num_pairs, nothing.in_time, nothing.difference) == (0, None, None)
    assert nothing.verdict == "unclear"
    assert "no pair of valid runs" in comparison_table([nothing])


@pytest.mark.parametrize(("seeds", "requests"), [(2, 3), (2, 20), (3, 5), (8, 3)])
def test_a_difference_that_is_not_there_is_seldom_claimed(seeds: int, requests: int) -> None:
    rng, claims = np.random.default_rng(1), 0
    for _ in range(200):
        ours, theirs = (rng.binomial(requests, 0.8, seeds) / requests for _ in range(2))
        claims += compared(ours.tolist(), theirs.tolist(), requests).verdict in ("pays", "loses")
    assert claims <= 0.05 * 200


def test_the_spread_of_a_difference_is_at_least_one_request() -> None:
    narrow = paired_interval([1 / 3] * 2, one_request(3))
    assert narrow is not None
    assert (narrow.high - narrow.low) / 2 == pytest.approx(12.706 * 2**0.5 / (3 * 2**0.5))
    wide = [0.0, 0.5, 1.0]
    assert paired_interval(wide, one_request(100)) == t_interval(wide)
    assert paired_interval([0.5], 0.1) is None
