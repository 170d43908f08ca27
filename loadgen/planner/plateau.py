"""Where what is as good as the best ends, among more splits than are simulated. Pure: given a function that measures.

Between the best split and the nearest one that falls out on each side the range is halved until they are neighbours.
Like the search itself it takes for granted that attainment rises to one peak and falls behind it, so that what lies
between two splits that are as good is as good. A split that comes out better than the best takes its place, and both
ends are sought again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from loadgen.planner.cells import Outcome, mean_of
from loadgen.sim.config import Fleet

Outcomes = dict[Fleet, list[Outcome]]
Race = Callable[[Fleet, Sequence[Outcome]], list[Outcome]]  # a split against the best one's outcomes, as far as it gets


def widened(outcomes: Outcomes, num_workers: int, race: Race, flat: float) -> Outcomes:
    """These, and the splits on the way to both ends of what is no further than `flat` below the best."""
    known = dict(outcomes)
    while True:
        best = best_of(known)
        for end in (0, num_workers):
            _seek(known, best, end, race, flat)
        if best_of(known) == best:
            return known


def best_of(outcomes: Outcomes) -> Fleet:
    """Only a split with all seeds: the others were dropped because they are worse."""
    most = max(len(each) for each in outcomes.values())
    return max(outcomes, key=lambda fleet: (len(outcomes[fleet]) == most, mean_of(outcomes[fleet]).rank))


def ends(outcomes: Outcomes, best: Fleet, end: int, flat: float) -> tuple[int, int]:
    """Prefill workers of the furthest split towards `end` (0 or all workers, which are no splits) before the first
    simulated one that falls out, and of that one; `end` if none does."""
    inside = best.num_prefill
    side = [each.num_prefill for each in outcomes if (each.num_prefill - inside) * (end - inside) > 0]
    for num_prefill in sorted(side, key=lambda number: abs(number - best.num_prefill)):
        fleet = _split(best, num_prefill)
        if not is_as_good(outcomes[fleet], outcomes[best], flat):
            return inside, num_prefill
        inside = num_prefill
    return inside, end


def is_as_good(ours: Sequence[Outcome], best: Sequence[Outcome], flat: float) -> bool:
    """By the figures themselves, seed by seed."""
    return fmean(our.attainment - its.attainment for our, its in zip(ours, best, strict=False)) >= -flat


def _seek(known: Outcomes, best: Fleet, end: int, race: Race, flat: float) -> None:
    inside, outside = ends(known, best, end, flat)
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        fleet = _split(best, middle)
        known[fleet] = race(fleet, known[best])
        inside, outside = ends(known, best, end, flat)


def _split(like: Fleet, num_prefill: int) -> Fleet:
    return Fleet(num_prefill, like.num_prefill + like.num_decode - num_prefill)
