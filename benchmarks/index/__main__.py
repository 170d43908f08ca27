"""Prefix-index benchmark: `python -m benchmarks.index`, or `make bench-index`.

Prints a table against the targets; the last line is one JSON object. `reference_loop_us` is a fixed loop of plain
Python, measured between the parts: figures of two machines compare by their ratios to it. The machine should be
otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.index.in_process import applying, hashing, matching, memory
from benchmarks.index.through_redis import through_redis
from benchmarks.index.timing import reference_loop_us
from benchmarks.placement import select_reserve_64_us
from benchmarks.record import record

RESULTS = Path(__file__).parents[1] / "results"


def placing() -> Iterator[tuple[str, float]]:
    """Choice and booking among 64 workers, in process (see `benchmarks.placement`)."""
    yield "select_reserve_64_us", select_reserve_64_us()


PARTS: dict[str, Callable[[], Iterator[tuple[str, float]]]] = {
    "match": matching,
    "apply": applying,
    "hash": hashing,
    "memory": memory,
    "place": placing,
    "redis": through_redis,
}
AT_MOST = {
    "match_160x8_us": 15.0,
    "match_160x64_us": 15.0,
    "match_2000x64_us": 60.0,
    "apply_worst_ms": 5.0,
    "select_reserve_64_us": 150.0,
    "visible_p99_ms": 20.0,
    "bytes_per_placement": 64.0,
    "warm_restart_1m_s": 3.0,
}
AT_LEAST = {"apply_blocks_per_s": 1.5e6, "hash_tokens_per_s": 12e6}


def main() -> None:
    args = _arguments()
    measured: dict[str, list[float]] = defaultdict(list)
    for number in range(args.rounds):
        print(f"round {number + 1}", file=sys.stderr, flush=True)
        for part in args.parts:
            measured["reference_loop_us"].append(reference_loop_us())
            for name, value in PARTS[part]():
                measured[name].append(value)
    numbers = {name: float(f"{statistics.median(values):.4g}") for name, values in measured.items()}
    if args.record:
        print(f"recorded in {record(RESULTS, 'index', numbers)}", file=sys.stderr)
    print(table(numbers))
    print(json.dumps(numbers))


def table(numbers: Mapping[str, float]) -> str:
    """For people."""
    lines = [f"{'':28} {'measured':>12}   target"]
    for name, value in numbers.items():
        target, met = "", ""
        if name in AT_MOST:
            target, met = f"<= {AT_MOST[name]:,g}", "" if value <= AT_MOST[name] else "  missed"
        elif name in AT_LEAST:
            target, met = f">= {AT_LEAST[name]:,.0f}", "" if value >= AT_LEAST[name] else "  missed"
        lines.append(f"{name:28} {value:>12,.{0 if value >= 1_000 else 2}f}   {target}{met}")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="medians over rounds are reported")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
