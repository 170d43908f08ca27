"""`diptych plan` and `python -m loadgen plan`: how many prefill and how many decode workers, for one's own traffic."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from loadgen.planner.backtest import Backtest, backtest, results_in
from loadgen.planner.cells import Evaluator, Outcome
from loadgen.planner.engines import Engine
from loadgen.planner.fewest import smallest
from loadgen.planner.options import DEFAULT_ENGINE, EngineOptions, parse_slo
from loadgen.planner.report import Plan, as_data, as_text, limits_as_data
from loadgen.planner.search import search
from loadgen.planner.traffic import Traffic, load_traffic
from loadgen.planner.usage import WRONG_USAGE, WrongUsage
from loadgen.sim.config import Fleet

FAILED, MISSED = 1, 4  # exit statuses


def plan(
    trace: str,
    /,
    *,
    slo: str,
    workers: int = 0,
    max_workers: int = 0,
    policy: str = "min_ttft",
    seeds: int = 5,
    flat: float = 0.01,
    requests: int = 0,
    rate: float = 0.0,
    speedup: float = 1.0,
    jitter_ms: float = -1.0,
    max_input: int = 0,
    max_output: int = 0,
    engine: EngineOptions = DEFAULT_ENGINE,
    backtest: tuple[Path, ...] = (),
    backtest_fleet: tuple[str, ...] = (),
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Find the number of prefill and decode workers for a trace, in the simulator, and say how sure that is.

    Exit status: 0 a plan that meets the target; 4 a plan, but no fleet meets it; 1 it could not be made; 2 wrong usage.

    Parameters
    ----------
    trace
        A file in any format of `loadgen run` (recognised, or FORMAT:FILE), or a generator such as sessions:turns=3..6
        with --requests and --rate.
    slo
        ttft_ms=1000,tpot_ms=50: what a good request is, both at once; ,attainment=0.9 the share that has to be.
    workers
        How many there are; the plan splits them.
    max_workers
        Instead: the fewest, up to so many, that meet the target.
    policy
        Of placement: min_ttft, least_load, …
    seeds
        At most so many for a fleet; the last comparison has as many fresh ones.
    flat
        Fleets no further below the best are called as good (share of all requests).
    requests
        Only the first so many; 0: all.
    rate
        Requests/s, Poisson, instead of the recorded times.
    speedup
        Of the recorded times.
    jitter_ms
        Of the recorded times; -1: what their rounding leaves open, at least the mean gap.
    max_input, max_output
        Tokens; longer ones are cut. 0: no limit.
    backtest
        A measured run (NAME.run.json of `loadgen run`, or a folder of them) to predict and compare with.
    backtest_fleet
        What that run's cluster was, e.g. 1P+1D or 2; once for all runs, or one for each.
    json
        Print one JSON object and nothing else.
    """
    try:
        wanted, sizes = parse_slo(slo), (workers, max_workers)
        if sum(size > 0 for size in sizes) != 1 or min(sizes) < 0:
            raise WrongUsage("give --workers or --max-workers, above 0")
        traffic = load_traffic(
            trace,
            num_requests=requests or None,
            rate=rate,
            speedup=speedup,
            jitter_ms=None if jitter_ms < 0 else jitter_ms,
            max_input=max_input or None,
            max_output=max_output or None,
        )
        made = engine.engine(traffic)
        by_size: dict[int, float] = {}
        tests = _backtests(backtest, backtest_fleet, made, policy, traffic)
        began = time.perf_counter()
        measure = Evaluator(traffic, made, wanted.limits, policy, _say)
        if workers:
            found = search(workers, measure, seeds, flat)
        else:
            found, by_size = smallest(max_workers, measure, seeds, flat, wanted.attainment)
    except (ValueError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, WrongUsage) else FAILED
    about = Plan(
        trace=traffic.name,
        num_requests=len(traffic.requests),
        offered_rps=len(traffic.requests) / max(traffic.duration_s, 1e-9),
        jitter_ms=traffic.jitter_ms,
        engine=made.name,
        policy=policy,
        limits=limits_as_data(wanted.limits, wanted.attainment),
        flat=flat,
        seeds=seeds,
        runs=measure.num_runs,
        wall_s=time.perf_counter() - began,
        by_size=by_size,
        backtests=tests,
    )
    print(msgspec.json.encode(as_data(about, found)).decode() if json else as_text(about, found))
    return 0 if found.attained >= wanted.attainment else MISSED


def _backtests(
    paths: tuple[Path, ...], fleets: tuple[str, ...], engine: Engine, policy: str, traffic: Traffic
) -> list[Backtest]:
    files = [file for path in paths for file in results_in(path)]
    if len(fleets) not in (0, 1, len(files)):
        raise WrongUsage(f"say with --backtest-fleet what the clusters of {len(files)} runs were: one, or one for each")
    given: list[Fleet | None] = [Fleet.parse(text) for text in fleets] or [None]
    each = given * len(files) if len(given) == 1 else given
    return [backtest(file, fleet, engine, policy, traffic) for file, fleet in zip(files, each, strict=True)]


def _say(fleet: Fleet, seed: int, outcome: Outcome) -> None:
    print(f"  {fleet} seed {seed}: {outcome.attainment:.1%} good, TTFT {outcome.ttft_mean_ms:.0f} ms", file=sys.stderr)
