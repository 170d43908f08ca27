"""Our engine under measurement: the whole of it, scheduler and sampling included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.engine.workload import CHUNK, CONTEXT, DECODE_STEPS, prompt
from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind, Runner
from diptych.engine.limits import Limits
from diptych.messages import SamplingParams

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class StepTime:
    seconds: float
    arithmetic_seconds: float  # of these, in matrix products, attention and row operations; 0 if nobody counts


class Ours:
    """`Measured` over an `Engine`. `arithmetic` tells the seconds spent in kernels so far."""

    def __init__(self, runner: Runner, max_context: int, arithmetic: Callable[[], float] = lambda: 0.0) -> None:
        self._engine = Engine(runner, Limits(CHUNK, 64, BLOCK_SIZE, max_context))
        self._arithmetic = arithmetic
        self._num_requests = 0

    def prefill(self, length: int) -> float:
        self._add(length, max_tokens=1)
        began = time.perf_counter()
        self._drain()
        return length / (time.perf_counter() - began)

    def decode(self, batch: int) -> float:
        """From the median step: a busy neighbour lengthens some steps, not the typical one."""
        return batch / statistics.median(step.seconds for step in self.decode_steps(batch))

    def decode_steps(self, batch: int) -> list[StepTime]:
        """`DECODE_STEPS` steps of so many sequences around `CONTEXT`."""
        requests = [self._add(CONTEXT - DECODE_STEPS // 2, max_tokens=CONTEXT) for _ in range(batch)]
        started: set[str] = set()
        while len(started) < batch:
            started.update(update.request_id for update in self._engine.step().updates)
        steps = [self._timed_step(batch) for _ in range(DECODE_STEPS)]
        for request in requests:
            self._engine.abort(request)
        self._drain()
        self._engine.clear_cache()
        return steps

    def _timed_step(self, batch: int) -> StepTime:
        began, spent = time.perf_counter(), self._arithmetic()
        outcome = self._engine.step()
        step = StepTime(time.perf_counter() - began, self._arithmetic() - spent)
        if outcome.decode_rows != batch or outcome.computed_tokens != batch:
            raise RuntimeError(f"a step was to decode {batch} rows alone, but it computed {outcome.computed_tokens}")
        return step

    def _add(self, length: int, max_tokens: int) -> str:
        self._num_requests += 1
        request_id = f"request {self._num_requests}"
        sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)  # no stop token
        tokens = tuple(prompt(length, self._num_requests))
        self._engine.add(EngineRequest(request_id, Kind.LOCAL, tokens, sampling, bytes(32)))
        return request_id

    def _drain(self) -> None:
        while self._engine.has_work:
            self._engine.step()
