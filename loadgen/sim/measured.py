"""Timing models measured here: from the steps of a real engine, or from what a running worker reports of itself.

    runner = TimedRunner(TorchRunner.load(…))     a worker's runner, with a stop-watch
    …                                             steps of many shapes
    timing = fit(runner.samples)                  closed forms, for the simulator

Knows nothing about which engine it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diptych.engine.interface import Drawn, Plan, Runner
from diptych.engine.sim.timing import FittedTiming, StepShape, shape_of
from diptych.messages import WorkerStats


@dataclass(frozen=True, slots=True)
class Sample:
    """One step."""

    shape: StepShape
    ms: float


class TimedRunner:
    """A `Runner` that notes the shape and duration of every step of another one."""

    def __init__(self, runner: Runner, clock: Callable[[], float] = time.perf_counter) -> None:
        self.num_blocks = runner.num_blocks
        self.block_bytes = runner.block_bytes
        self.pool_address = runner.pool_address
        self.samples: list[Sample] = []
        self._runner = runner
        self._clock = clock

    def execute(self, plan: Plan, kv_written: Callable[[], None] | None = None) -> list[list[Drawn]]:
        began = self._clock()
        drawn = self._runner.execute(plan, kv_written)
        if plan.rows:
            self.samples.append(Sample(shape_of(plan.rows), (self._clock() - began) * 1e3))
        return drawn

    def clear_tail(self, block: int, num_tokens: int) -> None:
        self._runner.clear_tail(block, num_tokens)


def fit(samples: Sequence[Sample]) -> FittedTiming:
    """Least squares over the steps that only compute prompts and over those that only decode; mixed ones are left out.

    Raises:
        ValueError: there are not three steps of each kind.
    """
    prompts = [each for each in samples if each.shape.chunks and not each.shape.num_decodes]
    decodes = [each for each in samples if not each.shape.chunks]
    if min(len(prompts), len(decodes)) < 3:
        raise ValueError(f"{len(prompts)} prompt and {len(decodes)} decode steps were measured; it takes 3 of each")
    c0, c1, c2 = solve([_prompt_terms(each.shape) for each in prompts], [each.ms for each in prompts])
    rows = [(1.0, each.shape.num_decodes, each.shape.context_tokens) for each in decodes]
    d0, d1, d2 = solve(rows, [each.ms for each in decodes])
    return FittedTiming(c0, c1, c2, d0, d1, d2)


def from_stats(stats: WorkerStats) -> FittedTiming:
    """What a worker says of itself (`WorkerStats`): one rate and one step time, so neither batch nor context count.

    Raises:
        ValueError: it has not measured both yet.
    """
    if stats.prefill_tokens_per_s <= 0 or stats.decode_step_ms <= 0:
        raise ValueError("the worker has not computed a prompt and decoded yet; send it a request first")
    return FittedTiming(0.0, 1e3 / stats.prefill_tokens_per_s, 0.0, stats.decode_step_ms, 0.0, 0.0)


def _prompt_terms(shape: StepShape) -> tuple[float, float, float]:
    tokens = sum(count for _, count in shape.chunks)
    return 1.0, tokens, sum((start + count) ** 2 - start**2 for start, count in shape.chunks)


def solve(terms: Sequence[tuple[float, float, float]], ms: Sequence[float]) -> list[float]:
    """Least squares of times over three terms. No coefficient is below zero: one that would be, from noise, is left out
    and the others are fitted again."""
    matrix: npt.NDArray[np.float64] = np.array(terms, np.float64)
    wanted = np.array(ms)
    used = [0, 1, 2]
    while True:
        found = np.linalg.lstsq(matrix[:, used], wanted, rcond=None)[0]
        if (found >= 0).all():
            break
        used = [column for column, value in zip(used, found, strict=True) if value >= 0]
    coefficients = dict(zip(used, found.tolist(), strict=True))
    return [coefficients.get(column, 0.0) for column in range(3)]
