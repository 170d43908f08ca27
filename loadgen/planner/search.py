"""The best fleet of a size, and how sure that is. Pure: given a function that measures.

Seeds are paired: seed i moves the arrivals alike for every fleet, so fleets are compared by their differences seed by
seed (common random numbers), which spread far less than their figures do.

Up to `EXACT_UP_TO` workers every ratio is measured. Beyond, one seed goes over a coarse grid, and then between the best
points of it in halved steps: that finds the best if attainment rises to one peak and falls behind it, and the answer
says that it was assumed. Then seeds are added in rounds, and a fleet leaves when its paired interval lies wholly below
the best one's by more than `flat` (racing: Maron and Moore, "Hoeffding races", 1994, with Student's t for the bound).
Last, where not every ratio was measured, the ends of what is as good as the best are sought (`plateau`). What is said
about best against colocated is measured again on seeds that had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from loadgen.planner.cells import Measure, Outcome, colocated, mean_of, ratios
from loadgen.planner.plateau import best_of, ends, widened
from loadgen.sim.config import Fleet
from loadgen.sim.intervals import Interval, interval

EXACT_UP_TO = 16  # workers
GRID_POINTS = 8
FIRST_ROUND = 3  # seeds before anything is dropped: fewer know no spread


@dataclass(frozen=True, slots=True)
class Found:
    """One fleet. `minus_best` is of the attainment, seed by seed; None for the best itself and for colocated."""

    fleet: Fleet
    outcomes: list[Outcome]
    mean: Outcome
    attainment: Interval
    minus_best: Interval | None

    def is_as_good(self, flat: float) -> bool:
        """No further below the best than `flat`, by the figures themselves."""
        return self.minus_best is None or self.minus_best.mean >= -flat

    @property
    def may_be_best(self) -> bool:
        """The seeds do not tell it from the best. One seed tells nothing."""
        return self.minus_best is None or self.minus_best.num_samples < 2 or self.minus_best.high >= 0


@dataclass(frozen=True, slots=True)
class Plateau:
    """From where to where ratios are as good as the best, by their prefill workers, supposing a single peak.

    Attributes:
        below, above: the next ones, measured and worse; None: there is none further out.
    """

    first: Found
    last: Found
    below: Found | None
    above: Found | None

    def has(self, fleet: Fleet) -> bool:
        return self.first.fleet.num_prefill <= fleet.num_prefill <= self.last.fleet.num_prefill


@dataclass(frozen=True, slots=True)
class Search:
    """
    Attributes:
        found: best first; each of them a ratio, colocated not among them. Those that only one seed was spent on are not
            there if there were more.
        exact: every ratio was measured.
        gain: attainment of the best over colocated, on fresh seeds; None with fewer than two workers.
        num_simulated: ratios, with one seed or more.
        plateau: None if every ratio was measured.
    """

    num_workers: int
    found: list[Found]
    colocated: Found
    exact: bool
    gain: Interval | None
    fresh_best: Outcome | None
    fresh_colocated: Outcome | None
    num_simulated: int = 0
    plateau: Plateau | None = None

    @property
    def overall(self) -> Found:
        """The best of all, colocated among them."""
        disaggregated = self.found[:1]
        return max([*disaggregated, self.colocated], key=lambda each: each.mean.rank)

    @property
    def attained(self) -> float:
        """By the best of all, on seeds that had no part in choosing it. Of one worker there was no choice."""
        fresh = self.fresh_colocated if self.overall is self.colocated else self.fresh_best
        return (fresh or self.overall.mean).attainment


def search(num_workers: int, measure: Measure, num_seeds: int, flat: float) -> Search:
    """
    Args:
        flat: attainment; fleets that are worse than the best by more are dropped early.

    Raises:
        ValueError: there is no worker, or no seed.
    """
    if num_workers < 1 or num_seeds < 1:
        raise ValueError("a plan needs at least one worker and one seed")
    counted = _Counted(measure)
    cells, exact = candidates(num_workers, counted)
    alive, outcomes = cells, dict[Fleet, list[Outcome]]()
    for seeds in dict.fromkeys((min(FIRST_ROUND, num_seeds), num_seeds)):
        outcomes |= {cell: [counted(cell, seed) for seed in range(seeds)] for cell in alive}
        alive = _survivors({cell: outcomes[cell] for cell in alive}, flat)
    if not exact:
        outcomes = widened(outcomes, num_workers, lambda cell, best: _raced(cell, best, counted, num_seeds, flat), flat)
    together = colocated(num_workers)
    alone = _found(together, [measure(together, seed) for seed in range(num_seeds)], None)
    if not cells:
        return Search(num_workers, [], alone, True, None, None, None)
    found = _ranked(outcomes)
    fresh = range(num_seeds, 2 * num_seeds)
    best, both = ([measure(cell, seed) for seed in fresh] for cell in (found[0].fleet, together))
    made = Search(num_workers, found, alone, exact, difference(best, both), mean_of(best), mean_of(both))
    plateau = None if exact else _plateau(found, outcomes, num_workers, flat)
    return replace(made, num_simulated=len(counted.fleets), plateau=plateau)


def candidates(num_workers: int, measure: Measure) -> tuple[list[Fleet], bool]:
    """The ratios worth more than one seed, and whether they are all there are."""
    cells = ratios(num_workers)
    if num_workers <= EXACT_UP_TO:
        return cells, True
    step = max(1, len(cells) // GRID_POINTS)
    seen = set(range(step // 2, len(cells), step))
    while step > 1:
        step = (step + 1) // 2
        best = sorted(seen, key=lambda index: measure(cells[index], 0).rank, reverse=True)[:2]
        near = {index + away for index in best for away in (-step, step)}
        seen |= {index for index in near if 0 <= index < len(cells)}
    by_rank = sorted(seen, key=lambda index: measure(cells[index], 0).rank, reverse=True)
    return [cells[index] for index in sorted(by_rank[:GRID_POINTS])], False


def difference(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Interval:
    """Of attainment, seed by seed."""
    return interval([our.attainment - their.attainment for our, their in zip(ours, theirs, strict=True)])


def _survivors(outcomes: dict[Fleet, list[Outcome]], flat: float) -> list[Fleet]:
    best = max(outcomes.values(), key=lambda each: mean_of(each).rank, default=[])
    if len(best) < 2:
        return list(outcomes)
    return [cell for cell, each in outcomes.items() if each is best or difference(each, best).high >= -flat]


class _Counted:
    """Measures, and remembers which ratios."""

    def __init__(self, measure: Measure) -> None:
        self.fleets: set[Fleet] = set()
        self._measure = measure

    def __call__(self, fleet: Fleet, seed: int) -> Outcome:
        self.fleets.add(fleet)
        return self._measure(fleet, seed)


def _raced(fleet: Fleet, best: Sequence[Outcome], measure: Measure, num_seeds: int, flat: float) -> list[Outcome]:
    """All seeds of a fleet, or those of the first round if they are enough to say that it is worse than the best."""
    first = [measure(fleet, seed) for seed in range(min(FIRST_ROUND, num_seeds))]
    if len(first) > 1 and difference(first, best[: len(first)]).high < -flat:
        return first
    return first + [measure(fleet, seed) for seed in range(len(first), num_seeds)]


def _plateau(found: Sequence[Found], outcomes: dict[Fleet, list[Outcome]], num_workers: int, flat: float) -> Plateau:
    by_prefill = {each.fleet.num_prefill: each for each in found}
    (first, below), (last, above) = (ends(outcomes, found[0].fleet, end, flat) for end in (0, num_workers))
    return Plateau(by_prefill[first], by_prefill[last], by_prefill.get(below), by_prefill.get(above))


def _ranked(outcomes: dict[Fleet, list[Outcome]]) -> list[Found]:
    """Best first."""
    best = best_of(outcomes)
    others = [_found(cell, each, outcomes[best]) for cell, each in outcomes.items() if cell != best]
    return [_found(best, outcomes[best], None), *sorted(others, key=lambda each: each.mean.rank, reverse=True)]


def _found(cell: Fleet, outcomes: list[Outcome], best: Sequence[Outcome] | None) -> Found:
    against = difference(outcomes, best[: len(outcomes)]) if best else None
    return Found(cell, outcomes, mean_of(outcomes), interval([each.attainment for each in outcomes]), against)


def flat_region(found: Iterable[Found], flat: float) -> list[Found]:
    """The fleets no further below the best than `flat`, and the best."""
    return [each for each in found if each.is_as_good(flat)]
