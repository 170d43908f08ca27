"""The simulator against a run that was measured: the same requests at the same times, predicted and found.

A measured run keeps its configuration, and configuration and seed are the whole plan: lengths, shared blocks and times.
So nothing is approximated but the system under test. Of both, requests between warm-up and tail count.

Knows nothing of how the run's cluster was made: the caller says its fleet and engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from loadgen.client.plan import Plan, make_plan, window_ms
from loadgen.experiment.cells import Cell
from loadgen.experiment.results import CellRun
from loadgen.planner.engines import Engine
from loadgen.planner.same_traffic import differences
from loadgen.planner.traffic import Traffic
from loadgen.report.result import RunResult, read_result
from loadgen.sim.cluster import simulate
from loadgen.sim.config import Fleet, SimConfig, remote_prefill_of
from loadgen.sim.event_loop import NS_PER_MS
from loadgen.sim.metrics import Limits
from loadgen.sim.policies import policy_named, routed
from loadgen.sim.requests import Record, from_trace
from loadgen.sim.workload import OpenLoop

RESULT_SUFFIX = ".run.json"


class Compared(msgspec.Struct, frozen=True):
    """One figure."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative, with its sign; of an attainment, the difference in points of it."""
        if self.name == "attainment":
            return self.predicted - self.measured
        return self.predicted / self.measured - 1 if self.measured else float("nan")


class Backtest(msgspec.Struct, frozen=True, kw_only=True):
    run: str  # file name
    fleet: str
    num_requests: int  # measured ones
    valid: bool  # as the run itself says
    known_real: bool  # its server said that a model computes; False: it could not be asked
    same_traffic: bool  # as the plan's
    differs: list[str]  # in what, if not, in words
    timing_from_it: bool  # the simulator's timing was taken from this very run: a fit, and no test
    compared: list[Compared]

    @property
    def mean_error(self) -> float:
        """Mean of the absolute errors."""
        known = [abs(each.error) for each in self.compared if np.isfinite(each.error)]
        return float(np.mean(known)) if known else float("nan")


def results_in(path: Path) -> list[Path]:
    """
    Raises:
        ValueError: a folder without a measured run (of `loadgen run`, or an experiment's).
    """
    files = sorted(path.rglob(f"*{RESULT_SUFFIX}")) or sorted(path.glob("runs/*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"there is no measured run (*{RESULT_SUFFIX}) in {path}")
    return files


def read_run(path: Path) -> tuple[RunResult, Cell | None]:
    """
    Raises:
        ValueError: the file is neither a run's result nor a cell's of an experiment.
        OSError: it cannot be read.
    """
    try:
        run = msgspec.json.decode(path.read_bytes(), type=CellRun)
    except ValueError:
        return read_result(path), None
    return run.result, run.cell


def backtest(path: Path, fleet: Fleet | None, engine: Engine, policy: str, traffic: Traffic) -> Backtest:
    """
    Args:
        path: of `loadgen run URL`, which knows nothing of the cluster, or of an experiment, which says its fleet,
            policy, remote prefill and chunk size itself.
        fleet: None: as the file says.
        traffic: the plan's, to say whether the run's was the same.

    Raises:
        ValueError: the file is no measured run, its plan cannot be made again, it was a closed loop, or simulated.
        OSError: it, or the trace that it was made of, cannot be read.
    """
    result, cell = read_run(path)
    if result.simulated:
        raise ValueError(f"{path.name} was simulated: held against it, the simulator would only meet itself")
    seed = result.config.seed
    if cell is None:
        placing, remote_prefill = policy_named(policy, seed), remote_prefill_of(policy)
    else:
        remote_prefill = cell.remote_prefill
        fleet = Fleet(cell.prefill, cell.decode)
        engine = replace(engine, max_batch_tokens=cell.max_batch_tokens)
        placing = routed(cell.policy, seed, cell.remote_prefill)
    if fleet is None:
        raise ValueError(f"{path.name} does not say what its cluster was; give --backtest-fleet, e.g. 1P+1D")
    plan = make_plan(result.config)
    if plan.horizon_ms is None:
        raise ValueError(f"{path.name} was a closed loop; only runs with fixed times can be predicted")
    differs = differences(result.config, traffic)
    return Backtest(
        run=path.name,
        fleet=str(fleet),
        num_requests=result.summary.measured,
        valid=result.valid,
        known_real=result.simulated is False,
        same_traffic=not differs,
        differs=differs,
        timing_from_it=f"{seed}/{result.config.salt}" in engine.measured_on,
        compared=_compare(result, predict(plan, engine.config(fleet, placing, remote_prefill)), plan),
    )


def predict(plan: Plan, config: SimConfig) -> Sequence[Record]:
    """What becomes of a measuring client's plan in a simulated cluster."""
    requests = [from_trace(each.index, each.request, round(each.due_ms * NS_PER_MS)) for each in plan.requests]
    return simulate(config, OpenLoop(requests)).records


def inside(records: Sequence[Record], window: tuple[float, float]) -> list[Record]:
    """Those that were to be sent in the window, ms from the start of the run."""
    return [each for each in records if window[0] <= each.request.arrival_ns / NS_PER_MS <= window[1]]


def _compare(result: RunResult, records: Sequence[Record], plan: Plan) -> list[Compared]:
    assert plan.horizon_ms is not None
    window = window_ms(result.config, plan.horizon_ms)
    counted = inside(records, window)
    limits = Limits(result.config.ttft_limit_ms, result.config.tpot_limit_ms)
    good = sum(limits.met_by(each) for each in counted)
    done = [each for each in counted if each.finished]
    ttft = [each.ttft_ms for each in done]
    tpot = [each.tpot_ms for each in done if each.request.output_length > 1]
    found = []
    for name, predicted in (("ttft", ttft), ("tpot", tpot)):
        measured = result.summary.latencies.get(name)
        if measured is None or not predicted:
            continue
        figures = [float(np.mean(predicted)), *np.percentile(predicted, (50, 90, 99)).tolist()]
        known = (measured.mean, measured.p50, measured.p90, measured.p99)
        labels = ("mean", "p50", "p90", "p99")
        found += [Compared(f"{name}_{label}_ms", *each) for label, *each in zip(labels, figures, known, strict=True)]
    measured_goodput = result.summary.goodput
    window_s = max(result.summary.window_s, 1e-3)
    found.append(Compared("attainment", good / max(1, len(counted)), measured_goodput.attainment))
    found.append(Compared("goodput_rps", good / window_s, measured_goodput.requests_per_s))
    return found
