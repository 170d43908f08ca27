"""The fewest workers that are enough. Pure: given a function that measures."""

from __future__ import annotations

from loadgen.planner.cells import Measure, colocated
from loadgen.planner.search import Search, candidates, search


def smallest(
    max_workers: int, measure: Measure, num_seeds: int, flat: float, attainment: float
) -> tuple[Search, dict[int, float]]:
    """The fewest workers of which some fleet attains so much, and what the best of each size that was tried attained:
    on the first seed, or where all were tried on fresh ones. If even `max_workers` do not: those.

    Bisection finds about how many (more workers do not attain less), with one seed, which flatters some sizes and
    wrongs others. So from there on all seeds decide: upwards until a size attains it, and downwards until one does not.
    """
    tried: dict[int, float] = {}

    def on_first_seed(size: int) -> float:
        cells, _ = candidates(size, measure)
        return max(measure(cell, 0).attainment for cell in (*cells, colocated(size)))

    def searched(size: int) -> Search:
        made = search(size, measure, num_seeds, flat)
        tried[size] = made.attained
        return made

    low, high = 0, max_workers  # `low` do not suffice
    while high - low > 1:
        middle = (low + high) // 2
        tried[middle] = on_first_seed(middle)
        low, high = (low, middle) if tried[middle] >= attainment else (middle, high)
    made = searched(high)
    if made.attained >= attainment:
        for size in range(high - 1, 0, -1):
            if (fewer := searched(size)).attained < attainment:
                break
            made = fewer
    else:
        for size in range(high + 1, max_workers + 1):
            if (made := searched(size)).attained >= attainment:
                break
    return made, dict(sorted(tried.items()))
