"""Runs an experiment: every cell with every seed that is not there yet, in an order drawn beforehand.

A run whose generator fell behind says nothing about the system, so it is measured once more; what the second time says
stays, marked if need be. Knows neither what it measures nor where progress is shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import msgspec

from loadgen.client.config import RunConfig
from loadgen.experiment.cells import Cell, in_order
from loadgen.experiment.configs import planned_s, run_config, settle_config
from loadgen.experiment.eta import Forecast, in_words
from loadgen.experiment.origin import Origin, origin_of
from loadgen.experiment.results import CellRun, ResultFolder
from loadgen.experiment.shape import Say, Shape, SystemUnavailable, misfit
from loadgen.experiment.use import Use
from loadgen.report.result import STOPPED, RunResult

ATTEMPTS = 2


class Interrupted(Exception):
    """The experiment was told to stop in the middle of a run, of which nothing is kept."""


class Backend(Protocol):
    """What cells are measured on."""

    async def shape(self, shape: Shape) -> tuple[str, str]:
        """Take this shape; the base URL, and the model's name there."""

    async def settle(self, config: RunConfig) -> None:
        """Send this and forget it."""

    async def measure(self, config: RunConfig, shape: Shape, records_path: Path) -> tuple[RunResult, Use | None]: ...

    async def close(self) -> None: ...


class Named(Backend, Protocol):
    """One that says which cluster it is."""

    @property
    def cluster(self) -> str:
        """Its name, once it has taken a shape, if somebody else started it; else empty."""


class Runner:
    """`run` may be cancelled at any time: what is over is kept, and another `run` goes on from there."""

    def __init__(
        self, folder: ResultFolder, backend: Named, say: Say, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._experiment = folder.state.experiment
        self._folder = folder
        self._backend = backend
        self._say = say
        self._clock = clock
        self._forecast = Forecast()
        self._shape: Shape | None = None
        self._target = ("", "")
        self._origin = Origin()  # as far as it is known without the backend

    @property
    def ordered(self) -> list[tuple[Cell, int]]:
        made = self._experiment
        return in_order(made.sweep.made(), made.seeds, made.shuffle_seed)

    @property
    def left(self) -> list[tuple[Cell, int]]:
        return [(cell, seed) for cell, seed in self.ordered if not self._folder.has(cell, seed)]

    async def run(self) -> None:
        """
        Raises:
            SystemUnavailable: the system cannot be brought into a shape, or is found not to have been in it.
            ShardFailed: a process of the generator ended early.
            Interrupted: it was cancelled in the middle of a run.
            SpecError: what is there was measured of something else.
            OSError: a file that the experiment names cannot be read.
        """
        left, total = self.left, len(self.ordered)
        if total > len(left):
            self._say(f"{total - len(left)} of {total} runs are there already")
        try:
            self._origin = await asyncio.to_thread(origin_of, self._experiment)
            self._folder.stamp(self._origin)
            for number, (cell, seed) in enumerate(left):
                self._announce(total, left[number:])
                await self._bring(cell, seed)
                began_s = self._clock()
                await self._measure(cell, seed)
                self._forecast.ran(planned_s(cell, self._experiment.arrivals), self._clock() - began_s)
        finally:
            await self._backend.close()

    def _announce(self, total: int, left: Sequence[tuple[Cell, int]]) -> None:
        shapes = [self._shape, *(cell.shape for cell, _ in left)]
        changes = sum(after != before for before, after in pairwise(shapes))
        planned = [planned_s(cell, self._experiment.arrivals) for cell, _ in left]
        about = in_words(self._forecast.left_s(planned, changes))
        cell, seed = left[0]
        self._say(f"run {total - len(left) + 1} of {total}, about {about} left: {cell.key}, seed {seed}")

    async def _bring(self, cell: Cell, seed: int) -> None:
        if cell.shape == self._shape:
            return
        began_s = self._clock()
        self._target = await self._backend.shape(cell.shape)
        found = msgspec.structs.replace(self._origin, model=self._target[1], cluster=self._backend.cluster)
        self._folder.stamp(found)
        if each := self._experiment.arrivals.settle_requests:
            config = run_config(self._experiment, cell, seed, self._folder.state.salt, self._target)
            await self._backend.settle(settle_config(config, cell.num_workers, each))
        self._shape = cell.shape
        self._forecast.shaped(self._clock() - began_s)

    async def _measure(self, cell: Cell, seed: int) -> None:
        path = self._folder.records_path(cell, seed)
        for attempt in range(ATTEMPTS):
            config = run_config(self._experiment, cell, seed, self._folder.state.salt, self._target, attempt)
            result, use = await self._backend.measure(config, cell.shape, path)
            if STOPPED in result.invalid_because:
                raise Interrupted
            phases = result.summary.phases
            if why := misfit(cell.shape, phases.remote_share if phases else None):
                raise SystemUnavailable(f"{cell.key}, seed {seed}: {why}")
            if result.valid:
                break
            self._say(f"invalid: {'; '.join(result.invalid_because)}{'' if attempt else '; once more'}")
        self._folder.write(CellRun(cell=cell, seed=seed, result=result, use=use, attempts=attempt + 1))
