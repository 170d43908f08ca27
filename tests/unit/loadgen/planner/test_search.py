"""The search over ratios: with a made-up cluster whose best ratio is known."""

from __future__ import annotations

import random

import pytest

from loadgen.planner.cells import Outcome
from loadgen.planner.fewest import smallest
from loadgen.planner.search import EXACT_UP_TO, candidates, flat_region, search
from loadgen.sim.config import Fleet


class Hill:
    """Attainment falls with the distance from one prefill share; seeds add noise that all fleets share, and some of
    their own. Counts what it was asked."""

    def __init__(
        self, peak: float, *, steep: float = 1.0, noise: float = 0.0, alone: float = 0.5, need: int = 0
    ) -> None:
        self.peak, self.steep, self.noise, self.alone, self.need = peak, steep, noise, alone, need
        self.asked: set[tuple[Fleet, int]] = set()

    def __call__(self, fleet: Fleet, seed: int) -> Outcome:
        self.asked.add((fleet, seed))
        total = fleet.num_prefill + fleet.num_decode
        share = fleet.num_prefill / total
        good = self.alone if not fleet.num_prefill else 1 - self.steep * abs(share - self.peak)
        good *= min(1.0, total / self.need) if self.need else 1.0
        shared = random.Random(seed).gauss(0, 5 * self.noise)
        own = random.Random(f"{seed} {fleet}").gauss(0, self.noise)
        return outcome(good + shared + own)


def outcome(attainment: float, ttft_p90_ms: float = 100.0) -> Outcome:
    rest = dict.fromkeys(Outcome.__struct_fields__, 1.0)
    return Outcome(**{**rest, "attainment": attainment, "ttft_p90_ms": ttft_p90_ms})


@pytest.mark.parametrize("peak", [0.1, 0.25, 0.5, 0.9])
def test_a_small_fleet_is_searched_exactly(peak: float) -> None:
    hill = Hill(peak)
    found = search(8, hill, 5, flat=0.02)
    assert found.exact
    assert {fleet for fleet, _ in hill.asked} == {Fleet(prefill, 8 - prefill) for prefill in range(8)}
    assert found.found[0].fleet.num_prefill == min(range(1, 8), key=lambda prefill: abs(prefill / 8 - peak))


@pytest.mark.parametrize("peak", [0.07, 0.31, 0.5, 0.88])
def test_a_large_one_is_searched_coarse_to_fine(peak: float) -> None:
    hill = Hill(peak)
    found = search(64, hill, 3, flat=0.0)
    assert not found.exact
    assert found.found[0].fleet.num_prefill == round(64 * peak)
    assert len({fleet for fleet, _ in hill.asked}) < 64 / 2


def test_what_is_clearly_worse_gets_no_further_seeds() -> None:
    hill = Hill(0.5, noise=0.002)
    found = search(8, hill, 9, flat=0.01)
    seeds = {each.fleet.num_prefill: len(each.outcomes) for each in found.found}
    assert seeds[4] == 9
    assert seeds[1] == seeds[7] == 3


def test_a_fleet_that_left_in_the_last_round_is_told_with_all_its_seeds() -> None:
    """The third seed still has it level, so it stays for the second round, and the fourth and fifth say it is worse."""

    def measure(fleet: Fleet, seed: int) -> Outcome:
        level = 0.9 + 0.001 * seed
        return outcome(level if fleet == Fleet(1, 2) or seed < 3 else level - 0.5 - 0.001 * seed)

    found = search(3, measure, 30, flat=0.01)
    assert {str(each.fleet): len(each.outcomes) for each in found.found} == {"1P+2D": 30, "2P+1D": 30}
    worse = found.found[1]
    assert worse.minus_best is not None
    assert worse.minus_best.high < -0.01


def test_with_one_seed_figures_still_tell_what_is_as_good_and_none_is_surely_worse() -> None:
    found = search(10, Hill(0.5, steep=0.1), 1, flat=0.011)
    assert {each.fleet.num_prefill for each in flat_region(found.found, 0.011)} == {4, 5, 6}
    assert all(each.may_be_best for each in found.found)


def test_the_target_is_held_against_seeds_that_did_not_choose() -> None:
    """Whatever was chosen was lucky: on fresh seeds it attains less."""

    def measure(fleet: Fleet, seed: int) -> Outcome:
        return outcome((0.95 if fleet.num_prefill else 0.5) - (0.1 if seed >= 3 else 0.0))

    found = search(3, measure, 3, flat=0.01)
    assert found.overall.mean.attainment == pytest.approx(0.95)
    assert found.attained == pytest.approx(0.85)
    made, tried = smallest(3, measure, 3, 0.01, 0.9)
    assert (made.num_workers, tried[3]) == (3, pytest.approx(0.85))


def test_noise_that_all_share_does_not_hide_a_small_difference() -> None:
    """Seeds move everything by 5 points; the neighbours of the best are 3 behind it in every one of them."""
    found = search(6, Hill(0.5, steep=0.2, noise=0.01), 8, flat=0.0)
    best, *others = found.found
    assert best.fleet == Fleet(3, 3)
    assert best.attainment.high - best.attainment.low > 0.05
    behind = next(each for each in others if each.fleet == Fleet(2, 4))
    assert behind.minus_best is not None
    assert behind.minus_best.high < 0
    assert not behind.may_be_best


def test_flatness_is_what_lies_within_the_given_share() -> None:
    found = search(10, Hill(0.5, steep=0.1), 3, flat=0.011)
    assert {each.fleet.num_prefill for each in flat_region(found.found, 0.011)} == {4, 5, 6}


class Plateau:
    """As good from `first` to `last` prefill workers, and 3 points worse for each one further; own noise on top."""

    def __init__(self, first: int, last: int, noise: float = 0.0) -> None:
        self.first, self.last, self.noise = first, last, noise
        self.asked: set[tuple[Fleet, int]] = set()

    def __call__(self, fleet: Fleet, seed: int) -> Outcome:
        self.asked.add((fleet, seed))
        away = max(self.first - fleet.num_prefill, fleet.num_prefill - self.last, 0)
        good = 0.95 - 0.03 * away if fleet.num_prefill else 0.5
        return outcome(good + random.Random(f"{seed} {fleet}").gauss(0, self.noise))


@pytest.mark.parametrize(("first", "last"), [(9, 54), (1, 63), (30, 31), (1, 20), (40, 63)])
def test_the_ends_of_a_flat_region_are_found_to_the_split(first: int, last: int) -> None:
    plateau = Plateau(first, last)
    found = search(64, plateau, 5, flat=0.01)
    assert found.plateau is not None
    ends = (found.plateau.first.fleet.num_prefill, found.plateau.last.fleet.num_prefill)
    assert ends == (first, last)
    beside = [each and each.fleet.num_prefill for each in (found.plateau.below, found.plateau.above)]
    assert beside == [first - 1 or None, last + 1 if last < 63 else None]
    with_all = {fleet for fleet, seed in plateau.asked if fleet.num_prefill and seed == 2}
    assert {each.fleet for each in found.found} == with_all
    assert found.num_simulated == len({fleet for fleet, _ in plateau.asked if fleet.num_prefill}) < 45


def test_with_noise_the_ends_are_where_a_simulated_neighbour_falls_out() -> None:
    found = search(64, Plateau(9, 54, noise=0.004), 5, flat=0.01)
    plateau = found.plateau
    assert plateau is not None
    assert plateau.below is not None
    assert plateau.above is not None
    assert plateau.first.fleet.num_prefill - plateau.below.fleet.num_prefill == 1
    assert plateau.above.fleet.num_prefill - plateau.last.fleet.num_prefill == 1
    assert not plateau.below.is_as_good(0.01)
    assert not plateau.above.is_as_good(0.01)
    assert all(each.minus_best is None or len(each.outcomes) in (3, 5) for each in found.found)
    assert max(found.found, key=lambda each: (len(each.outcomes), each.mean.rank)) is found.found[0]


def test_what_was_searched_exactly_needs_no_ends() -> None:
    found = search(8, Hill(0.5), 3, flat=0.01)
    assert found.plateau is None
    assert found.num_simulated == 7


@pytest.mark.parametrize(("alone", "sign"), [(0.5, 1), (1.2, -1)])
def test_colocated_is_compared_on_seeds_that_chose_nothing(alone: float, sign: int) -> None:
    hill = Hill(0.5, noise=0.01, alone=alone)
    found = search(4, hill, 5, flat=0.01)
    assert found.gain is not None
    assert found.gain.num_samples == 5
    assert {seed for fleet, seed in hill.asked if fleet == Fleet(0, 4)} == set(range(10))
    assert min(found.gain.low * sign, found.gain.high * sign) > 0
    assert found.overall.fleet == (Fleet(2, 2) if sign > 0 else Fleet(0, 4))


def test_one_worker_has_nothing_to_split() -> None:
    found = search(1, Hill(0.5), 3, flat=0.01)
    assert found.found == []
    assert found.gain is None
    assert found.overall.fleet == Fleet(0, 1)


def test_equal_attainment_goes_to_who_answers_sooner() -> None:
    def measure(fleet: Fleet, seed: int) -> Outcome:
        return outcome(1.0, ttft_p90_ms=100.0 - fleet.num_prefill)

    assert search(5, measure, 3, flat=0.01).found[0].fleet == Fleet(4, 1)


@pytest.mark.parametrize("need", [1, 2, 5, 11, 12])
def test_the_smallest_fleet_that_suffices(need: int) -> None:
    made, tried = smallest(12, Hill(0.5, alone=0.95, need=need), 3, 0.01, 0.9 if need < 12 else 0.94)
    assert made.num_workers == (
        next(n for n in range(1, 13) if min(1, n / need) * best(n) >= (0.9 if need < 12 else 0.94))
    )
    assert tried[made.num_workers] >= 0.9


def test_one_seed_does_not_decide_how_few_suffice() -> None:
    """The first seed has three and four workers just below the target, and all others have them above."""

    def measure(fleet: Fleet, seed: int) -> Outcome:
        total = fleet.num_prefill + fleet.num_decode
        return outcome(0.5 if total < 3 else 0.97 if total > 4 else 0.895 if seed == 0 else 0.95)

    made, tried = smallest(9, measure, 5, 0.01, 0.9)
    assert made.num_workers == 3
    assert tried[3] == pytest.approx(0.95)
    assert tried[2] == pytest.approx(0.5)  # looked at with all seeds, and not enough


def best(size: int) -> float:
    return max([0.95, *(1 - abs(prefill / size - 0.5) for prefill in range(1, size))])


def test_if_none_suffices_the_largest_is_told() -> None:
    made, tried = smallest(6, Hill(0.5, need=20), 3, 0.01, 0.9)
    assert made.num_workers == 6
    assert tried[6] < 0.9


def test_candidates_of_every_size_are_ratios_of_it() -> None:
    for size in (2, EXACT_UP_TO, EXACT_UP_TO + 1, 40, 100):
        cells, exact = candidates(size, Hill(0.4))
        assert exact == (size <= EXACT_UP_TO)
        assert all(cell.num_prefill + cell.num_decode == size and cell.num_prefill for cell in cells)


def test_nothing_to_plan_is_refused() -> None:
    for workers, seeds in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="at least one"):
            search(workers, Hill(0.5), seeds, 0.01)
