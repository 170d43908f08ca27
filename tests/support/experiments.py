"""Experiments for tests: a file's text, runs that nobody measured, and a backend that plays them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec

from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import make_plan
from loadgen.client.records import Cost, Record
from loadgen.experiment.cells import Cell
from loadgen.experiment.configs import run_config
from loadgen.experiment.results import CellRun
from loadgen.experiment.shape import Shape
from loadgen.experiment.spec import Experiment
from loadgen.experiment.use import RoleUse, Use
from loadgen.report.result import RunResult, machine, make_result

TEXT = """
name = "Test"
seeds = [1, 2, 3]
[sweep]
mode = ["disaggregated", "colocated"]
prefill = [1]
decode = [1, 2]
input_tokens = [64, 512]
output_tokens = [8]
rate = [20.0, 40.0]
[arrivals]
duration_s = 0.95
settle_requests = 0
[slo]
ttft_ms = 100
tpot_ms = 20
"""
Ttft = Callable[[Cell], float]


def experiment(text: str = TEXT, **changes: object) -> Experiment:
    made = msgspec.toml.decode(text, type=Experiment)
    return msgspec.structs.replace(made, **changes)


def a_result(config: RunConfig, ttft_ms: float, *, remote: bool, lag_ms: float = 0.1) -> RunResult:
    """What a run might leave behind; every tenth request fails."""
    plan = make_plan(config)
    records = [
        Record(
            index=each.index,
            intended_ms=each.due_ms,
            lag_ms=lag_ms,
            ttft_ms=ttft_ms + (each.index * 7 + config.seed) % 5,
            e2e_ms=ttft_ms + 70,
            itl_ms=[10.0] * 7,
            planned_input=each.request.input_length,
            planned_output=8,
            prompt_tokens=each.request.input_length,
            output_tokens=8,
            cached_tokens=16,
            predicted_cached_tokens=16,
            cost=Cost(
                prefill_worker="p1" if remote else "",
                decode_worker="d1",
                computed_tokens=each.request.input_length - 16,
                queue_ms=2.0,
                prefill_ms=ttft_ms - 2,
                transfer_bytes=4096,
                transfer_ms=3.0,
                exposed_ms=1.0,
            ),
            failure="" if each.index % 10 else "http_503",
        )
        for each in plan.requests
    ]
    shard = ShardReport(cpu_share=0.1, loop_lag_ms=[0.1], connections=1)
    return make_result(config, plan, records, [shard], "2026-01-01T00:00:00+00:00", machine())


def a_use(busy: float, *, remote: bool) -> Use:
    role = RoleUse(busy=[busy] * 4, kv_used=[0.5] * 4, waiting=[1.0] * 4)
    return Use(at_s=[0.0, 1.0, 2.0, 3.0], prefill=role if remote else None, decode=role)


def runs_of(made: Experiment, ttft_ms: Ttft) -> list[CellRun]:
    """The whole experiment, as if it had been measured."""
    found = []
    for cell in made.sweep.made():
        for seed in made.seeds:
            config = run_config(made, cell, seed, 1, ("http://127.0.0.1:1", "m"))
            remote = bool(cell.prefill)
            result = a_result(config, ttft_ms(cell), remote=remote)
            found.append(CellRun(cell=cell, seed=seed, result=result, use=a_use(0.5, remote=remote)))
    return found


def run_with(cell: Cell, seed: int, attainment: float, *, requests: int = 100, valid: bool = True) -> CellRun:
    """One run of which so many requests were measured, and this share was in time."""
    summary = _template().summary
    met = msgspec.structs.replace(summary.goodput, attainment=attainment)
    summary = msgspec.structs.replace(summary, measured=requests, goodput=met)
    doubts = [] if valid else ["the generator fell behind"]
    result = msgspec.structs.replace(_template(), summary=summary, valid=valid, invalid_because=doubts)
    config = msgspec.structs.replace(result.config, seed=seed)
    return CellRun(cell=cell, seed=seed, result=msgspec.structs.replace(result, config=config))


@cache
def _template() -> RunResult:
    made = experiment()
    return a_result(run_config(made, made.sweep.made()[0], 1, 1, ("http://127.0.0.1:1", "m")), 50.0, remote=True)


class Played:
    """A backend that needs no time: says what it was asked, and fails as told."""

    def __init__(self, *, late: int = 0, fail_after: int | None = None, tick: Callable[[float], None] | None = None):
        self.shapes: list[Shape] = []
        self.configs: list[RunConfig] = []
        self.settled: list[RunConfig] = []
        self.closed = 0
        self.model, self.cluster = "m", ""
        self._late = late
        self._fail_after = fail_after
        self._tick = tick or (lambda _: None)

    async def shape(self, shape: Shape) -> tuple[str, str]:
        self.shapes.append(shape)
        self._tick(10.0)
        return "http://127.0.0.1:1", self.model

    async def settle(self, config: RunConfig) -> None:
        self.settled.append(config)

    async def measure(self, config: RunConfig, shape: Shape, records_path: Path) -> tuple[RunResult, Use | None]:
        if self._fail_after is not None and len(self.configs) >= self._fail_after:
            raise KeyboardInterrupt
        self.configs.append(config)
        self._tick(4.0)
        lag_ms = 99.0 if len(self.configs) <= self._late else 0.1
        return a_result(config, 50.0, remote=bool(shape.prefill), lag_ms=lag_ms), None

    async def close(self) -> None:
        self.closed += 1
