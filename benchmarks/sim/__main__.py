"""Simulator benchmark: `python -m benchmarks.sim`, or `make bench-sim`.

    speed          the whole conversation trace, 8 workers, one core
    interference   time per token against measurements of a real engine
    agreement      round-robin with fixed step times against an independent replay: reuse, TTFT, ITL
    policies       every trace x fleet x policy x seed: TTFT, reuse, goodput, with confidence intervals over the seeds
    wins           min_ttft against each other policy, seed by seed: the difference in mean and p99 TTFT
    scale          (--scale) 1,000 workers, 10 M blocks, 100,000 requests: memory, placement_p99_ms

Traces are read from a folder with Mooncake's conversation_trace.jsonl and synthetic_trace.jsonl (and
toolagent_trace.jsonl if it is there). Every run of a trace
is a `python -m loadgen replay … --json` of its own, so each can be repeated by hand. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.sim.agreement import measure_agreement
from benchmarks.sim.report import as_table
from benchmarks.sim.runs import Case, Runs, run_all, summarise, wins
from benchmarks.sim.scale import measure_scale
from loadgen.sim.interference import MEASURED_TPOT_MS, Comparison, compare, mape

RESULTS = Path(__file__).parents[1] / "results"
TRACES = Path(__file__).parents[2] / "../shared/data/traces/mooncake"
FLEETS = ("8", "4P+4D")
POLICIES = ("random", "round_robin", "least_load", "power_of_two", "prefix_only", "min_ttft")
QUICK_REQUESTS = 1_500
# Timestamps of the conversation trace are quantised to 3 s. The synthetic ones are fine; a little jitter makes its runs
# differ from seed to seed, or a policy that draws nothing would seem to be known exactly.
JITTER_MS = {"conversation": 3_000.0, "synthetic": 1_000.0, "toolagent": 3_000.0}


def main() -> None:
    args = _arguments()
    numbers: dict[str, Any] = {"requests_per_run": args.limit, "seeds": args.seeds, "first_seed": args.first_seed}
    runs = Runs(args.traces, args.limit, _say)
    comparisons = [compare(each) for each in MEASURED_TPOT_MS]
    numbers |= {"interference": _interference(comparisons), "interference_mape": mape(comparisons)}
    numbers["agreement"] = measure_agreement(args.traces, runs)
    speed = runs.run(Case("conversation", FLEETS[0], "min_ttft", 0, JITTER_MS["conversation"]))
    name = "replay_12031_s" if speed["num_requests"] == 12_031 else "replay_s"
    numbers |= {"replay_12031_s": None, name: speed["wall_s"], "replay_num_requests": speed["num_requests"]}
    cases = [
        Case(trace, fleet, policy, seed, jitter_ms)
        for trace, jitter_ms in JITTER_MS.items()
        if (args.traces / f"{trace}_trace.jsonl").exists()
        for fleet in FLEETS
        for policy in args.policies
        for seed in range(args.first_seed, args.first_seed + args.seeds)
    ]
    answers = run_all(runs, cases, args.jobs)
    numbers |= {"results": summarise(answers), "wins": wins(answers, "min_ttft")}
    if args.scale:
        numbers["scale"] = measure_scale(args.scale_workers, _say)
        numbers["placement_p99_ms"] = numbers["scale"]["placement_us_p99"] / 1e3
    if args.record:
        _say(f"recorded in {record(RESULTS, 'sim', numbers)}")
    print(as_table(numbers))
    print(json.dumps(numbers))


def _interference(comparisons: list[Comparison]) -> list[dict[str, float]]:
    return [{**asdict(each), "error": each.error} for each in comparisons]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of Mooncake's FAST'25 traces")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="others than a policy was tuned with say more")
    parser.add_argument("--limit", type=int, help="only the first so many requests of each trace")
    parser.add_argument("--policies", nargs="+", default=POLICIES, help="of placement; each is run on every fleet")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each on a core of its own")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_REQUESTS} requests, 2 seeds: minutes become seconds"
    )
    parser.add_argument(
        "--scale", action="store_true", help="also 1,000 workers and 10 M blocks: gigabytes of memory, many minutes"
    )
    parser.add_argument(
        "--scale-workers", type=int, default=1_000, help="fewer for a smaller machine; all else follows"
    )
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    if args.quick:
        args.limit, args.seeds = args.limit or QUICK_REQUESTS, min(args.seeds, 2)
    if not args.traces.is_dir():
        parser.error(f"no folder {args.traces}; give --traces a folder with Mooncake's *_trace.jsonl files")
    return args


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
