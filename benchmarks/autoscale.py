"""What autoscaling each phase is worth: `python -m benchmarks.autoscale`, or with --quick in a minute.

In virtual time, with the policy that the controller runs and the router's queue: loads of several shapes on engines
whose workers take a while to start. The same requests meet, sized by the same models (`benchmarks.sim.elastic`):

autoscaled      by the policy, from one worker of each kind
told at once    by one that is told every change of the rate when it happens: what a start-up costs, whoever decides
foreseen        by one that knows the rate a start-up ahead: what a forecast would be worth
fixed at peak   a fleet for the highest rate
fixed, as dear  a fleet that costs the same worker-hours, to the nearest worker

Every figure is a mean over seeds with its 95 % confidence interval. A turn is a pool that grew after it shrank or the
other way round; it is an oscillation if the rate was one and the same since a scale-down window and two start-ups
before the step that it undoes.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from benchmarks.record import record
from benchmarks.sim.elastic import Outcome, run_elastic, run_fixed, run_scaled
from benchmarks.sim.foresight import Foresight, Sizes, Told
from benchmarks.sim.loads import Load
from deploy.autoscale import AutoscaleSettings, Bounds
from diptych.engine.limits import Limits
from diptych.engine.sim.fits import deployment
from diptych.engine.sim.timing import FittedTiming
from loadgen.arrivals import Piece
from loadgen.sim.config import Fleet, SimConfig, with_queue
from loadgen.sim.intervals import interval
from loadgen.sim.policies import min_ttft

RESULTS = Path(__file__).parent / "results"
ENGINE = ("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", 4)
SLOWER = 8.0  # than that engine: as few requests as many workers need, so that hours are simulated in minutes
BLOCK_SIZE = 256
START_S = 60.0  # from asking for a worker to its first request
FLEETS = ("autoscaled", "told at once", "foreseen", "fixed at peak", "fixed, as dear")
WIDE = Bounds(min=1, max=16)
SETTINGS = AutoscaleSettings(mode="on", ttft_ms=4_000.0, tpot_ms=300.0, prefill=WIDE, decode=WIDE, start_s=START_S)


def loads(scale: float = 1.0) -> tuple[Load, ...]:
    """By name: steps, ramps, bursts and a day, in the length of an hour or less at `scale` 1."""

    def pieces(*rows: tuple[float, float, float]) -> tuple[Piece, ...]:
        return tuple(Piece(lasts_s * scale, start, end) for lasts_s, start, end in rows)

    day = (0.6, 0.4, 0.4, 1.2, 2.6, 3.4, 3.6, 3.4, 3.6, 2.6, 1.6, 0.9, 0.6)  # requests a second, every two hours
    return (
        Load("steps", pieces((600, 1, 1), (600, 4, 4), (600, 2, 2), (600, 0.5, 0.5)), 2_000, 300),
        Load("ramps", pieces((300, 0.5, 0.5), (1_200, 0.5, 4), (1_200, 4, 0.5), (900, 0.5, 0.5)), 2_000, 300),
        Load("bursts", pieces(*[(540, 1, 1), (60, 4, 4)] * 6), 2_000, 300),
        Load("day", pieces(*[(300, a, b) for a, b in pairwise(day)]), 2_000, 300),
    )


def engine() -> SimConfig:
    """A fitted engine, `SLOWER` times slower in all it does, behind a router in which requests wait."""
    fitted = deployment(*ENGINE)
    timing = FittedTiming(*[SLOWER * value for value in asdict(fitted.timing).values()])
    config = SimConfig(
        Fleet(1, 1),
        timing,
        min_ttft("always"),
        Limits(8_192, 256, BLOCK_SIZE, 1 << 17),
        fitted.kv_tokens // BLOCK_SIZE // 4,
        fitted.kv_bytes_per_token * BLOCK_SIZE,
        hop_ms=0.5,
        reserve_timeout_ms=3_600_000.0,
    )
    return with_queue(config, "wait", "min_ttft_remote", 0.0)


@dataclass(frozen=True)
class _Case:
    load: Load
    seed: int
    start_s: float
    settings: AutoscaleSettings
    policy_only: bool


def main() -> None:
    arguments = _arguments()
    chosen = [load for load in loads(arguments.scale) if load.name in (arguments.loads or load.name).split(",")]
    policy = structs.replace(SETTINGS, down_after_most_s=arguments.down_after_most_s)
    how = (arguments.start_s, policy, arguments.policy_only)
    cases = [_Case(load, seed, *how) for load in chosen for seed in range(arguments.seeds)]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(_run, cases))
    results = []
    for load in chosen:
        runs = [outcome for case, outcome in zip(cases, outcomes, strict=True) if case.load is load]
        results += [_summary(load, fleet, [run[fleet] for run in runs]) for fleet in runs[0]]
    settings = msgspec.to_builtins(policy)
    numbers = {"seeds": arguments.seeds, "start_s": arguments.start_s, "settings": settings, "results": results}
    for line in table(results):
        print(line)
    if arguments.record:
        print(f"recorded in {record(RESULTS, 'autoscale', numbers)}")
    print(json.dumps(numbers))


def _run(case: _Case) -> dict[str, Outcome]:
    """One load and seed on every fleet."""
    config = engine()
    sizes = Sizes(config, case.load, case.settings)
    first = sizes.fleet(case.load.highest(0.0, case.start_s))
    auto = run_elastic(config, case.load, case.settings, start_s=case.start_s, seed=case.seed)[0]
    if case.policy_only:
        return {FLEETS[0]: auto}
    outcomes = [auto]
    for scaler in (Told(sizes, case.start_s), Foresight(sizes, case.start_s)):
        runs = run_scaled(config, case.load, case.settings, scaler, first, start_s=case.start_s, seed=case.seed)
        outcomes.append(runs[0])
    for fleet in (sizes.fleet(case.load.peak), as_dear(auto)):
        outcomes.append(run_fixed(config, case.load, case.settings, fleet, case.seed))
    return dict(zip(FLEETS, outcomes, strict=True))


def as_dear(outcome: Outcome) -> Fleet:
    """The fleet that stays as it is and costs as much, to the nearest worker of each kind."""
    hours = (outcome.prefill_hours, outcome.decode_hours)
    return Fleet(*[max(1, round(each / outcome.lasted_hours)) for each in hours])


def _summary(load: Load, fleet: str, runs: Sequence[Outcome]) -> dict[str, Any]:
    found: dict[str, Any] = {"load": load.name, "fleet": fleet}
    for name in ("attainment", "ttft_attainment", "tpot_attainment", "prefill_hours", "decode_hours", "worker_hours"):
        found[name] = structs.asdict(interval([getattr(run, name) for run in runs]))
    found["turns"] = structs.asdict(interval([float(run.reversals) for run in runs]))
    found["oscillations"] = [run.oscillations for run in runs]
    found["most_workers"] = [max(run.most[pool] for run in runs) for pool in (0, 1)]
    found["trace_hashes"] = [run.trace_hash for run in runs]
    return found


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    head = f"{'load':<8}{'fleet':<15}{'within limits %':>18}{'worker hours':>16}{'most P+D':>10}{'turns':>13}"
    lines = [f"{head}{'oscillations':>14}"]
    for each in results:
        most, turns = "{}+{}".format(*each["most_workers"]), _cell(each["turns"], 1)
        lines.append(
            f"{each['load']:<8}{each['fleet']:<15}{_cell(each['attainment'], 100):>18}"
            f"{_cell(each['worker_hours'], 1):>16}{most:>10}{turns:>13}{sum(each['oscillations']):>14}"
        )
    return [*lines, "mean ± half of the 95 % confidence interval over the seeds; oscillations of all seeds together"]


def _cell(found: dict[str, float], factor: float) -> str:
    return f"{found['mean'] * factor:.4g} ± {(found['high'] - found['low']) / 2 * factor:.2g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the loads' duration")
    parser.add_argument("--start-s", type=float, default=START_S, help="that a worker really takes until it serves")
    parser.add_argument("--loads", default="", help="only these, e.g. steps,bursts")
    parser.add_argument(
        "--down-after-most-s",
        type=float,
        default=0.0,
        help=f"to which the scale-down window may be learnt to grow; {SETTINGS.down_after_s:g}: nothing is learnt",
    )
    parser.add_argument("--policy-only", action="store_true", help="without the fleets to compare with")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--quick", action="store_true", help="2 seeds, loads of a third of the length")
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    parser.add_argument("--json", action="store_true", help="the last line is JSON in any case")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.scale = 2, 1 / 3
    return arguments


if __name__ == "__main__":
    main()
