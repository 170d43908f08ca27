"""Which splits are as good as the best, in words."""

from __future__ import annotations

from collections.abc import Iterable

from loadgen.planner.search import Found, Plateau, Search, flat_region
from loadgen.sim.config import Fleet


def name_of(fleet: Fleet) -> str:
    return str(fleet) if fleet.num_prefill else f"{fleet} coloc."


def flatness(search: Search, flat: float) -> list[str]:
    as_good = flat_region(search.found, flat)
    same = [name_of(each.fleet) for each in search.found if each.may_be_best]
    if search.plateau is None:
        return [
            f"Within {flat:.1%} of the best ratio: {_names(as_good)}; not told from it by the seeds: "
            f"{', '.join(same)}.",
            "Every ratio was simulated.",
        ]
    inside = search.plateau
    beyond = [each for each in as_good if not inside.has(each.fleet)]
    return [
        f"Within {flat:.1%} of the best ratio: {name_of(inside.first.fleet)} to {name_of(inside.last.fleet)}, "
        f"supposing a single peak; {_beside(inside)}{'; as good again: ' + _names(beyond) if beyond else ''}.",
        f"Of those simulated the seeds do not tell from it: {', '.join(same)}.",
        f"Simulated were {search.num_simulated} of {search.num_workers - 1} ratios: a grid, between its best points, "
        f"and towards both ends of the range; above are the {len(search.found)} that were compared seed by seed.",
    ]


def _beside(inside: Plateau) -> str:
    """The nearest ratios that were simulated and are worse."""
    worse = [each for each in (inside.below, inside.above) if each is not None]
    if not worse:
        return "there are no others"
    names = " and ".join(f"{name_of(each.fleet)} ({_behind(each)} points)" for each in worse)
    return f"{names}, the next to it, {'fall' if len(worse) > 1 else 'falls'} out"


def _behind(each: Found) -> str:
    return f"{each.minus_best.mean * 100:+.1f}" if each.minus_best else "0"


def _names(found: Iterable[Found]) -> str:
    return ", ".join(name_of(each.fleet) for each in found)


def flat_range(plateau: Plateau | None) -> dict[str, str | None] | None:
    if plateau is None:
        return None
    ends = {name: getattr(plateau, name) for name in ("first", "last", "below", "above")}
    return {name: each and str(each.fleet) for name, each in ends.items()}
