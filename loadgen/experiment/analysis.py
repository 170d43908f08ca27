"""What an experiment's runs come to, cell by cell. Pure. How much a configuration sustains is in `capacity`, whether a
pair of pools beats as many colocated workers in `comparison`.

Figures of cells are means over seeds with Student's interval. A run whose generator fell behind says nothing about the
server: it is shown where a cell has no other, marked, and nothing is ever concluded from it.

A short Poisson run is offered more or less than its rate by chance, and a run of n requests on average n/(n-1) times of
it. So goodput of an open loop is taken here as its rate times the share of its requests that were in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from loadgen.experiment.cells import LOADS, Cell
from loadgen.experiment.results import CellRun
from loadgen.report.figures import BALANCES, Estimate, Series
from loadgen.report.intervals import Interval, t_interval

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
    """One cell, with its valid runs where there are any, else the others."""

    cell: Cell
    label: str
    runs: Sequence[CellRun]
    left_out: Sequence[CellRun] = ()  # invalid ones, beside valid ones

    @property
    def series(self) -> Series:
        return Series(self.label, [run.result for run in self.runs])

    @property
    def marked(self) -> Series:
        """The same, for tables and charts that do not say by themselves what is invalid."""
        return Series(self.label if self.valid else f"{self.label} (invalid)", self.series.results)

    @property
    def simulated(self) -> bool | None:
        """Whether any run is; None: not known."""
        return self.series.simulated

    @property
    def valid(self) -> Sequence[CellRun]:
        """The runs that something may be concluded from."""
        return _valid(self.runs)

    @property
    def num_invalid(self) -> int:
        return len(self.runs) + len(self.left_out) - len(self.valid)

    @property
    def per_worker(self) -> Estimate | None:
        """Goodput a worker, over seeds; None without a valid run."""
        workers = self.cell.num_workers
        found = [value / workers for value in self.goodput.values()]
        if not found:
            return None
        sure = t_interval(found, max(self.one_request.values()) / workers)
        most = (self.cell.requests_per_s or math.inf) / workers  # all in time
        within = Interval(max(0.0, sure.low), min(most, sure.high)) if sure else None
        return Estimate(float(np.mean(found)), within, len(found))

    @property
    def goodput(self) -> dict[int, float]:
        """Requests a second within the limits, by seed."""
        rate = self.cell.requests_per_s
        if rate is None:
            return {run.seed: run.result.summary.goodput.requests_per_s for run in self.valid}
        return {seed: rate * share for seed, share in self.attained.items()}

    @property
    def one_request(self) -> dict[int, float]:
        """What one request more in time would add to the goodput, by seed."""
        rate = self.cell.requests_per_s
        sizes = {run.seed: run.result.summary for run in self.valid}
        if rate is None:
            return {seed: 1 / summary.window_s for seed, summary in sizes.items()}
        return {seed: rate / summary.measured for seed, summary in sizes.items()}

    @property
    def attained(self) -> dict[int, float]:
        """Share of the requests within the limits, by seed."""
        return {run.seed: run.result.summary.goodput.attainment for run in self.valid}

    @property
    def attainment(self) -> Estimate | None:
        """Likewise, over seeds. The spread is at least one request's share: a few short runs are all in time by
        chance."""
        found = list(self.attained.values())
        if not found:
            return None
        sure = t_interval(found, max(1 / run.result.summary.measured for run in self.valid))
        within = Interval(max(0.0, sure.low), min(1.0, sure.high)) if sure else None
        return Estimate(float(np.mean(found)), within, len(found))

    def balance(self, phase: Literal["prompt", "output"]) -> float | None:
        """Jain's index over all workers of the role, those that got nothing included."""
        found = self.series.estimate(BALANCES[phase])
        return None if found is None else found.value


def measured(runs: Iterable[CellRun]) -> list[Measured]:
    """By cell, in order of first appearance."""
    groups: dict[Cell, list[CellRun]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(_of_workers(run))
    varying = varying_axes(groups)
    return [_measured(cell, label_of(cell, varying), mine) for cell, mine in groups.items()]


def simulated(cells: Iterable[Measured]) -> bool | None:
    """Whether any of it is; None: of none it is known that it is, and of some not that it is not."""
    found = {each.simulated for each in cells}
    return True if True in found else None if None in found else False


def _measured(cell: Cell, label: str, runs: Sequence[CellRun]) -> Measured:
    valid = _valid(runs)
    left_out = [run for run in runs if not run.result.valid] if valid else []
    return Measured(cell, label, valid or runs, left_out)


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


def without_load(cell: Cell) -> Cell:
    return msgspec.structs.replace(cell, **dict.fromkeys(LOADS))
