"""What autoscaling each phase is worth: `python -m benchmarks.autoscale`, or with --quick in a minute.

In virtual time, with the policy that the controller runs: loads of several shapes on engines whose workers take a while
to start, against two fleets that stay as they are: one sized for the peak and one for the mean, by the same models.
Every figure is a mean over seeds with its 95 % confidence interval. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.record import record
from benchmarks.sim.elastic import Load, Outcome, run_elastic, run_fixed, sized_for
from deploy.autoscale import AutoscaleSettings, Bounds
from diptych.engine.limits import Limits
from diptych.engine.sim.fits import deployment
from diptych.engine.sim.timing import FittedTiming
from loadgen.arrivals import Piece
from loadgen.sim.config import Fleet, SimConfig
from loadgen.sim.intervals import interval
from loadgen.sim.policies import min_ttft

RESULTS = Path(__file__).parent / "results"
ENGINE = ("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", 4)
SLOWER = 8.0  # than that engine: as few requests as many workers need, so that hours are simulated in minutes
BLOCK_SIZE = 64
START_S = 60.0  # from asking for a worker to its first request
FLEETS = ("autoscaled", "fixed at peak", "fixed at mean")
WIDE = Bounds(min=1, max=16)
SETTINGS = AutoscaleSettings(mode="on", ttft_ms=4_000.0, tpot_ms=300.0, prefill=WIDE, decode=WIDE, start_s=START_S)


def loads(scale: float = 1.0) -> tuple[Load, ...]:
    """By name: steps, ramps, bursts and a day, in the length of an hour at `scale` 1."""

    def pieces(*rows: tuple[float, float, float]) -> tuple[Piece, ...]:
        return tuple(Piece(lasts_s * scale, start, end) for lasts_s, start, end in rows)

    day = (0.6, 0.4, 0.4, 1.2, 2.6, 3.4, 3.6, 3.4, 3.6, 2.6, 1.6, 0.9, 0.6)  # requests a second, every two hours
    return (
        Load("steps", pieces((900, 1, 1), (900, 4, 4), (900, 2, 2), (900, 0.5, 0.5)), 2_000, 300),
        Load("ramps", pieces((300, 0.5, 0.5), (1_200, 0.5, 4), (1_200, 4, 0.5), (900, 0.5, 0.5)), 2_000, 300),
        Load("bursts", pieces(*[(540, 1, 1), (60, 4, 4)] * 6), 2_000, 300),
        Load("day", pieces(*[(600, a, b) for a, b in pairwise(day)]), 2_000, 300),
    )


def engine() -> SimConfig:
    """A fitted engine, `SLOWER` times slower in all it does."""
    fitted = deployment(*ENGINE)
    timing = FittedTiming(*[SLOWER * value for value in asdict(fitted.timing).values()])
    return SimConfig(
        Fleet(1, 1),
        timing,
        min_ttft("always"),
        Limits(8_192, 256, BLOCK_SIZE, 1 << 17),
        fitted.kv_tokens // BLOCK_SIZE // 4,
        fitted.kv_bytes_per_token * BLOCK_SIZE,
        hop_ms=0.5,
        reserve_timeout_ms=3_600_000.0,
    )


def main() -> None:
    arguments = _arguments()
    cases = [(load, seed, arguments.start_s) for load in loads(arguments.scale) for seed in range(arguments.seeds)]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(_run, cases))
    results = []
    for load in loads(arguments.scale):
        runs = [outcome for (of, _, _), outcome in zip(cases, outcomes, strict=True) if of.name == load.name]
        results += [_summary(load, fleet, [run[fleet] for run in runs]) for fleet in FLEETS]
    settings = msgspec.to_builtins(SETTINGS)
    numbers = {"seeds": arguments.seeds, "start_s": arguments.start_s, "settings": settings, "results": results}
    for line in table(results):
        print(line)
    if arguments.record:
        print(f"recorded in {record(RESULTS, 'autoscale', numbers)}")
    print(json.dumps(numbers))


def _run(case: tuple[Load, int, float]) -> dict[str, Outcome]:
    """One load and seed on every fleet."""
    load, seed, start_s = case
    config = engine()
    outcomes = {FLEETS[0]: run_elastic(config, load, SETTINGS, start_s=start_s, seed=seed)[0]}
    for name, rate in zip(FLEETS[1:], (load.peak, load.mean), strict=True):
        outcomes[name] = run_fixed(config, load, SETTINGS, sized_for(config, load, SETTINGS, rate), seed)
    return outcomes


def _summary(load: Load, fleet: str, runs: Sequence[Outcome]) -> dict[str, Any]:
    found: dict[str, Any] = {"load": load.name, "fleet": fleet}
    for name in ("attainment", "ttft_attainment", "tpot_attainment", "prefill_hours", "decode_hours", "worker_hours"):
        found[name] = msgspec.structs.asdict(interval([getattr(run, name) for run in runs]))
    found["most_reversals"] = max(run.reversals for run in runs)
    found["most_workers"] = [max(run.most[pool] for run in runs) for pool in (0, 1)]
    found["trace_hashes"] = [run.trace_hash for run in runs]
    return found


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{'load':<8}{'fleet':<15}{'within limits %':>18}{'worker hours':>18}{'most P+D':>10}{'reversals':>11}"]
    for each in results:
        attainment, hours = each["attainment"], each["worker_hours"]
        most = "{}+{}".format(*each["most_workers"])
        lines.append(
            f"{each['load']:<8}{each['fleet']:<15}{_cell(attainment, 100):>18}{_cell(hours, 1):>18}"
            f"{most:>10}{each['most_reversals']:>11}"
        )
    return [*lines, "mean ± half of the 95 % confidence interval over the seeds"]


def _cell(found: dict[str, float], factor: float) -> str:
    return f"{found['mean'] * factor:.4g} ± {(found['high'] - found['low']) / 2 * factor:.2g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the loads' duration")
    parser.add_argument("--start-s", type=float, default=START_S, help="that a worker really takes until it serves")
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
