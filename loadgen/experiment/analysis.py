"""What an experiment's runs come to: repeats of a cell, how much a configuration sustains, and pairs compared. Pure.

Figures of cells are means over seeds with Student's interval. Disaggregated and colocated cells met the same arrivals
and lengths seed by seed, so the interval of their difference is over the differences of pairs.

A short Poisson run is offered more or less than its rate by chance, and a run of n requests on average n/(n-1) times of
it. So goodput of an open loop is taken here as its rate times the share of its requests that were in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from loadgen.experiment.cells import LOADS, Cell, colocated
from loadgen.experiment.results import CellRun
from loadgen.report.figures import ATTAINMENT, BALANCES, Estimate, Series
from loadgen.report.intervals import Interval, t_interval

Verdict = Literal["pays", "loses", "same", "unclear", "neither"]
SAME = 0.05  # of the larger goodput: a difference surely below this is none
AXES = ("policy", "remote_prefill", "max_batch_tokens", "input_tokens", "output_tokens", "prefix_share", *LOADS)
TITLES = {
    "policy": "policy {}",
    "remote_prefill": "remote prefill {}",
    "max_batch_tokens": "chunk {}",
    "input_tokens": "in {}",
    "output_tokens": "out {}",
    "prefix_share": "{} shared",
    "rate": "{:g}/s",
    "rate_per_worker": "{:g}/s a worker",
    "input_tokens_per_s": "{:g} tokens/s",
    "concurrency": "{} at a time",
    "speedup": "× {:g}",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One cell, with its valid runs where there are any."""

    cell: Cell
    label: str
    runs: Sequence[CellRun]

    @property
    def series(self) -> Series:
        return Series(self.label, [run.result for run in self.runs])

    @property
    def simulated(self) -> bool | None:
        """Whether any run is; None: not known."""
        return self.series.simulated

    @property
    def per_worker(self) -> Estimate:
        """Goodput a worker, over seeds."""
        found = [value / self.cell.num_workers for value in self.goodput.values()]
        sure = t_interval(found)
        return Estimate(float(np.mean(found)), Interval(max(0.0, sure.low), sure.high) if sure else None, len(found))

    @property
    def goodput(self) -> dict[int, float]:
        """Requests a second within the limits, by seed."""
        rate = self.cell.requests_per_s
        if rate is None:
            return {run.seed: run.result.summary.goodput.requests_per_s for run in self.runs}
        return {seed: rate * share for seed, share in self.attained.items()}

    @property
    def attained(self) -> dict[int, float]:
        """Share of the requests within the limits, by seed."""
        return {run.seed: run.result.summary.goodput.attainment for run in self.runs}

    @property
    def attainment(self) -> float:
        return float(np.mean(list(self.attained.values())))

    def balance(self, phase: Literal["prompt", "output"]) -> float | None:
        """Jain's index over all workers of the role, those that got nothing included."""
        found = self.series.estimate(BALANCES[phase])
        return None if found is None else found.value


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most that a configuration sustains: goodput a worker, at a load that enough requests get through in time.
    Each seed finds its own load, and 0 where enough are in time at none; the figure is the mean over seeds."""

    cell: Cell  # of the highest such load; of the lowest load, if there is none
    label: str
    per_worker: float
    interval: Interval | None
    in_time: Estimate | None  # share of the requests within the limits, there
    loads: Sequence[float]  # at which the seeds had it, each its own; rising, without those that had none
    num_seeds: int
    sustained: bool  # there is such a load
    at_the_end: bool  # it is the highest that was tried: the true figure may be higher


@dataclass(frozen=True, slots=True)
class Comparison:
    """A pair of pools against as many colocated workers, under the same load."""

    disaggregated: Measured
    colocated: Measured
    difference: float  # of goodput, disaggregated less colocated, as a share of the larger one's mean
    interval: Interval | None  # likewise
    verdict: Verdict


def measured(runs: Iterable[CellRun]) -> list[Measured]:
    """By cell, in order of first appearance. Invalid runs stay only where a cell has no other."""
    groups: dict[Cell, list[CellRun]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run)
    varying = varying_axes(groups)
    return [
        Measured(cell, label_of(cell, varying), [_of_workers(run) for run in _valid(mine) or mine])
        for cell, mine in groups.items()
    ]


def simulated(cells: Iterable[Measured]) -> bool | None:
    """Whether any of it is; None: of none it is known that it is, and of some not that it is not."""
    found = {each.simulated for each in cells}
    return True if True in found else None if None in found else False


def _valid(runs: Iterable[CellRun]) -> list[CellRun]:
    return [run for run in runs if run.result.valid]


def _of_workers(run: CellRun) -> CellRun:
    """With the number of workers in it: a server reports of those only that did something."""
    found = run.result.summary.phases
    if found is None:
        return run
    size = {"num_prompt_workers": run.cell.prefill or run.cell.decode, "num_output_workers": run.cell.decode}
    summary = msgspec.structs.replace(run.result.summary, phases=msgspec.structs.replace(found, **size))
    return msgspec.structs.replace(run, result=msgspec.structs.replace(run.result, summary=summary))


def varying_axes(cells: Iterable[Cell]) -> list[str]:
    known = list(cells)
    # "never" of colocated cells is not a choice of its own
    chosen = {name: {getattr(cell, name) for cell in known} for name in AXES if name != "remote_prefill"}
    chosen["remote_prefill"] = {cell.remote_prefill for cell in known if cell.prefill}
    return [name for name in AXES if len(chosen[name]) > 1]


def label_of(cell: Cell, varying: Sequence[str]) -> str:
    shown = [name for name in varying if name != "remote_prefill" or cell.prefill]
    parts = [TITLES[name].format(getattr(cell, name)) for name in shown if getattr(cell, name) is not None]
    return ", ".join([str(cell.shape), *parts])


def load_text(cell: Cell, load: float) -> str:
    """`0.75/s a worker`, as labels have it."""
    return TITLES[cell.load_name].format(load)


def capacities(cells: Sequence[Measured], attainment: float) -> list[Capacity]:
    """One for each configuration, i.e. cells that differ in their load only."""
    groups: dict[Cell, list[Measured]] = {}
    for each in cells:
        groups.setdefault(without_load(each.cell), []).append(each)
    varying = [name for name in varying_axes(each.cell for each in cells) if name not in LOADS]
    return [
        _capacity(sorted(mine, key=lambda each: each.cell.load), label_of(setting, varying), attainment)
        for setting, mine in groups.items()
    ]


def comparisons(cells: Sequence[Measured]) -> list[Comparison]:
    by_cell = {each.cell: each for each in cells}
    pairs = [(each, by_cell.get(colocated(each.cell))) for each in cells if each.cell.prefill]
    return [_compare(each, other) for each, other in pairs if other is not None]


def _capacity(loads: Sequence[Measured], label: str, attainment: float) -> Capacity:
    sustained = [each for each in loads if each.attainment >= attainment]
    seeds = sorted({run.seed for each in loads for run in each.runs})
    found = [max((_good(each, seed, attainment), each.cell.load) for each in loads) for seed in seeds]
    best = [goodput for goodput, _ in found]
    shown = (sustained or loads)[-1 if sustained else 0]
    workers = loads[0].cell.num_workers
    interval = t_interval(best)
    return Capacity(
        cell=shown.cell,
        label=label,
        per_worker=float(np.mean(best)) / workers,
        interval=Interval(max(0.0, interval.low) / workers, interval.high / workers) if interval else None,
        in_time=shown.series.estimate(ATTAINMENT),
        loads=sorted(load for goodput, load in found if goodput),
        num_seeds=len(seeds),
        sustained=bool(sustained),
        at_the_end=bool(sustained) and sustained[-1] is loads[-1],
    )


def _good(cell: Measured, seed: int, attainment: float) -> float:
    return cell.goodput[seed] if cell.attained.get(seed, 0.0) >= attainment else 0.0


def _compare(ours: Measured, theirs: Measured) -> Comparison:
    a, b = ours.goodput, theirs.goodput
    larger = float(max(np.mean(list(a.values())), np.mean(list(b.values()))))
    if not larger:
        return Comparison(ours, theirs, 0.0, None, "neither")
    differences = [(a[seed] - b[seed]) / larger for seed in a if seed in b]
    interval = t_interval(differences)
    mean = float(np.mean(differences)) if differences else 0.0
    return Comparison(ours, theirs, mean, interval, _verdict(interval))


def _verdict(interval: Interval | None) -> Verdict:
    if interval is None:
        return "unclear"
    if max(abs(interval.low), abs(interval.high)) <= SAME:
        return "same"
    return "pays" if interval.low > 0 else "loses" if interval.high < 0 else "unclear"


def without_load(cell: Cell) -> Cell:
    return msgspec.structs.replace(cell, **dict.fromkeys(LOADS))
