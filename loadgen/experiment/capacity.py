"""How much each configuration sustains: goodput a worker, at the highest load that it keeps up with. Pure.

**A load is judged by all its seeds together**: their mean attainment has to reach the wanted share. Letting each seed
choose the load at which it did best would be a maximum over noise: with a true attainment of 80 % everywhere, a seed of
five requests finds one of four loads at which 90 % were in time in four cases of five. The mean's error shrinks with
every seed and request, which a verdict by majority of the seeds would not do. Its lower confidence bound would be the
stricter rule, and is no rule for the three to five seeds that experiments have: Student's t is 4.3 for three of them,
so that a server at 97 % would be said to sustain nothing. So the bound decides nothing but what is said: `certain`.

**All lower loads have to pass as well.** A server that keeps up with a load keeps up with less, so a pass above a
failure is luck; chance can end the search early, and cannot lift it. Goodput and its interval are those of the seeds at
that one load. The interval leaves the selection out: the same runs chose the load, and another set of seeds might have
chosen its neighbour.

**Only valid runs count, and only what is there.** A load of which no run is valid is as good as not tried: it is never
a failure of the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from loadgen.experiment.analysis import Measured, label_of, varying_axes, without_load
from loadgen.experiment.cells import LOADS, Cell
from loadgen.experiment.spec import Experiment
from loadgen.report.figures import Estimate
from loadgen.report.intervals import Interval

ROUNDING = 1e-9  # of a mean of shares


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most that a configuration sustains, per worker."""

    cell: Cell  # at the highest load that it sustains; else at the lowest that is known, or planned
    label: str
    per_worker: float | None  # 0: not even the lowest load; None: not known, see `note`
    interval: Interval | None  # at that load, over seeds
    in_time: Estimate | None  # share of the requests within the limits, there
    num_seeds: int  # of valid runs there
    sustained: bool  # there is such a load
    certain: bool  # the whole interval of the attainment says so: there, or that not even the lowest load is
    at_the_end: bool  # no higher load is known to fail: the true figure may be higher
    note: str  # what a reader has to know; empty: nothing
    num_missing: int = 0  # runs of it that are not over yet, at any load
    num_invalid: int = 0  # runs of it that say nothing, at any load


def capacities(cells: Sequence[Measured], made: Experiment) -> list[Capacity]:
    """One for each configuration that is planned, i.e. cells that differ in their load only."""
    by_cell = {each.cell: each for each in cells}
    groups: dict[Cell, list[Cell]] = {}
    for cell in made.sweep.made():
        groups.setdefault(without_load(cell), []).append(cell)
    varying = [name for name in varying_axes(groups) if name not in LOADS]
    return [
        _capacity(_Ladder(sorted(mine, key=lambda cell: cell.load), by_cell, made), label_of(setting, varying))
        for setting, mine in groups.items()
    ]


class _Ladder:
    """The loads of one configuration, rising, with what is known of each."""

    def __init__(self, planned: Sequence[Cell], by_cell: dict[Cell, Measured], made: Experiment) -> None:
        share = made.slo.attainment
        found = [each for cell in planned if (each := by_cell.get(cell)) is not None]
        known = [each for each in found if each.valid]
        passing = list(takewhile(lambda each: _reaches(each.attainment, share), known))
        self.share = share
        self.planned = planned
        self.lowest = known[0] if known else None
        self.best = passing[-1] if passing else None
        self.failed = known[len(passing)] if len(passing) < len(known) else None
        self.unknown = [cell for cell in planned if all(cell != each.cell for each in known)]
        num_over = sum(len(each.runs) + len(each.left_out) for each in found)
        self.num_missing = max(0, len(planned) * len(made.seeds) - num_over)
        self.num_invalid = sum(each.num_invalid for each in found)

    @property
    def open_above(self) -> bool:
        """The highest load that is sustained may be higher than `best`."""
        if self.failed is None or self.best is None:
            return True
        return any(self.best.cell.load < cell.load < self.failed.cell.load for cell in self.unknown)

    @property
    def open_below(self) -> bool:
        """It may be lower than all that are known."""
        return self.lowest is None or any(cell.load < self.lowest.cell.load for cell in self.unknown)


def _capacity(loads: _Ladder, label: str) -> Capacity:
    shown, best = loads.best or loads.lowest, loads.best
    goodput = best.per_worker if best else None
    in_time = shown.attainment if shown else None
    sure = in_time.interval if in_time else None
    certain = sure is not None and (sure.low >= loads.share - ROUNDING if best else sure.high < loads.share - ROUNDING)
    return Capacity(
        cell=shown.cell if shown else loads.planned[0],
        label=label,
        per_worker=goodput.value if goodput else None if loads.open_below else 0.0,
        interval=goodput.interval if goodput else None,
        in_time=in_time,
        num_seeds=len(shown.valid) if shown else 0,
        sustained=best is not None,
        certain=certain,
        at_the_end=best is not None and loads.open_above,
        note="; ".join(_notes(loads, certain=certain)),
        num_missing=loads.num_missing,
        num_invalid=loads.num_invalid,
    )


def _notes(loads: _Ladder, *, certain: bool) -> list[str]:
    said = []
    if loads.best is None and loads.lowest is not None:
        lowest = "not at the lowest load with a valid run" if loads.open_below else "not even at the lowest load"
        said.append(lowest + ("" if certain else ", which is not certain"))
    elif loads.best is not None:
        if not certain:
            said.append(f"{100 * loads.share:g} % in time is not certain")
        if loads.open_above:
            above = "there is no valid run at a higher load" if loads.unknown else "the highest tried"
            said.append(f"{above}: there may be more")
    elif not loads.num_missing:
        said.append("no valid run")
    if loads.num_missing:
        said.append(f"unfinished: {loads.num_missing} runs to come")
    if loads.num_invalid:
        said.append(f"{loads.num_invalid} runs invalid, left out")
    return said


def _reaches(attainment: Estimate | None, share: float) -> bool:
    return attainment is not None and attainment.value >= share - ROUNDING
