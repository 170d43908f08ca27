"""What one process of the load generator can do: `python -m benchmarks.loadgen_client [--rate 1100] [--record]`.

A mock server in a process of its own streams one token an event, each in a write of its own; the generator sends an
open loop to it. The last line is JSON: requests and tokens a second, schedule lag, CPU. It wants two cores that nothing
else uses: on a busy machine the lag is the machine's. `--compare` adds what a token costs other clients, in CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.loadgen_peers import compare
from benchmarks.record import record
from loadgen.arrivals import OpenLoop, parse_rate
from loadgen.client.config import RunConfig
from loadgen.client.run import run_once

ROOT = Path(__file__).resolve().parents[1]
MOCK = ROOT / "tests/support/mock_openai.py"
TIMETABLE = {"ttft_ms": 20, "itl_ms": 10}
TARGETS = {"requests_per_s": 1_000, "tokens_per_s": 50_000, "lag_p99_ms": 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1_100)
    parser.add_argument("--tokens", type=int, default=50, help="of an answer")
    parser.add_argument("--prompt", type=int, default=100, help="tokens of a prompt")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="the median of them counts")
    parser.add_argument("--compare", action="store_true", help="measure other clients too")
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    with mock_server() as base_url:
        rounds = [asyncio.run(measure(args, base_url, seed)) for seed in range(args.rounds)]
        numbers: dict[str, object] = dict(sorted(rounds, key=lambda each: each["lag_p99_ms"])[len(rounds) // 2])
        numbers |= {"rounds": args.rounds, "lag_p99_ms_rounds": [each["lag_p99_ms"] for each in rounds]}
        if args.compare:
            numbers["cpu_us_per_token"] = compare(base_url, args.tokens)
    numbers["reached"] = all(each["reached"] for each in rounds)
    if args.record:
        print(record(ROOT / "benchmarks/results", "loadgen-client", numbers))
    print(json.dumps(numbers))


async def measure(args: argparse.Namespace, base_url: str, seed: int) -> dict[str, float]:
    config = RunConfig(
        base_url=base_url,
        model="mock",
        workload=f"independent:input={args.prompt},output={args.tokens}",
        arrivals=OpenLoop(parse_rate(str(args.rate), args.seconds)),
        duration_s=args.seconds,
        warmup_s=min(2.0, args.seconds / 4),
        tail_s=min(1.0, args.seconds / 8),
        seed=seed,
    )
    summary = (await run_once(config)).summary
    side = summary.generator
    numbers = {
        "requests_per_s": round(summary.requests_per_s, 1),
        "tokens_per_s": round(summary.output_tokens_per_s),
        "lag_p99_ms": round(side.lag_p99_ms, 2),
        "loop_lag_p99_ms": round(side.loop_lag_p99_ms, 2),
        "cpu_share": side.cpu_share_max,
        "failed": float(summary.measured - summary.succeeded),
    }
    reached = (
        numbers["requests_per_s"] >= TARGETS["requests_per_s"]
        and numbers["tokens_per_s"] >= TARGETS["tokens_per_s"]
        and numbers["lag_p99_ms"] <= TARGETS["lag_p99_ms"]
        and not numbers["failed"]
    )
    print("  ".join(f"{name} {value:g}" for name, value in numbers.items()), "reached" if reached else "NOT reached")
    return numbers | {"reached": reached}


@contextmanager
def mock_server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(MOCK), json.dumps(TIMETABLE)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.terminate()
        process.wait(timeout=10)


if __name__ == "__main__":
    main()
