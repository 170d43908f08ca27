"""Runs of the simulator as processes of their own, and what comes of several seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from loadgen.sim.intervals import interval

# What is told of each trace, fleet and policy: its name, and where it is in the answer of `replay --json`.
MEASURES = {
    "ttft_mean_ms": ("ttft_ms", "mean"),
    "ttft_p99_ms": ("ttft_ms", "p99"),
    "tpot_mean_ms": ("tpot_ms", "mean"),
    "itl_p99_ms": ("itl_ms", "p99"),
    "reuse": ("reuse",),
    "predicted_reuse": ("predicted_reuse",),
    "goodput_rps": ("goodput_rps",),
    "attainment": ("attainment",),
    "balance_prompt": ("balance_prompt",),
    "utilisation_prefill": ("utilisation_prefill",),
    "transfer_exposed_ms": ("transfer_exposed_ms",),
}


@dataclass(frozen=True, slots=True)
class Case:
    trace: str
    fleet: str
    policy: str
    seed: int
    jitter_ms: float

    @property
    def group(self) -> tuple[str, str, str]:
        return self.trace, self.fleet, self.policy


class Runs:
    def __init__(self, traces: Path, limit: int | None, say: Callable[[str], None]) -> None:
        self._traces = traces
        self._limit = limit
        self._say = say

    def command(self, trace: str, options: Mapping[str, object]) -> list[str]:
        """Without the interpreter: what follows `python`."""
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return ["-m", "loadgen", "replay", str(self._traces / f"{trace}_trace.jsonl"), *flags, "--json"]

    def replay(self, trace: str, options: Mapping[str, object]) -> dict[str, Any]:
        """
        Raises:
            RuntimeError: the run failed; says how.
        """
        command = self.command(trace, options)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def run(self, case: Case) -> dict[str, Any]:
        """
        Raises:
            RuntimeError: the run failed; says how.
        """
        options = {"fleet": case.fleet, "policy": case.policy, "seed": case.seed, "jitter-ms": case.jitter_ms}
        if self._limit is not None:
            options["limit"] = self._limit
        answer = self.replay(case.trace, options)
        self._say(f"{' '.join(case.group)} seed {case.seed}: {answer['wall_s']:.1f} s")
        return answer


Answers = list[tuple[Case, dict[str, Any]]]


def run_all(runs: Runs, cases: Sequence[Case], jobs: int) -> Answers:
    """All cases, in their order."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(zip(cases, pool.map(runs.run, cases), strict=True))


def summarise(answers: Answers) -> list[dict[str, Any]]:
    """For each trace, fleet and policy (cases are sorted by them) every measure with its interval over the seeds."""
    found = []
    for (trace, fleet, policy), group in groupby(answers, key=lambda each: each[0].group):
        samples = [answer for _, answer in group]
        measures = {name: _interval([_dig(each, path) for each in samples]) for name, path in MEASURES.items()}
        failed = sum(each["num_failed"] for each in samples)
        about = {"trace": trace, "fleet": fleet, "policy": policy, "num_seeds": len(samples), "num_failed": failed}
        found.append(about | measures)
    return found


def wins(answers: Answers, policy: str) -> list[dict[str, Any]]:
    """The policy against every other one: the differences in TTFT, seed by seed, with their intervals, and whether both
    lie wholly below 0. With one seed there is no interval, and no win."""
    by_case = {(case.trace, case.fleet, case.policy, case.seed): answer for case, answer in answers}
    seeds = sorted({case.seed for case, _ in answers})
    found = []
    for trace, fleet, other in dict.fromkeys(case.group for case, _ in answers):
        if other == policy or (trace, fleet, policy, seeds[0]) not in by_case:
            continue
        apart = {
            name: _interval(
                [
                    _dig(by_case[trace, fleet, policy, seed], MEASURES[name])
                    - _dig(by_case[trace, fleet, other, seed], MEASURES[name])
                    for seed in seeds
                ]
            )
            for name in ("ttft_mean_ms", "ttft_p99_ms")
        }
        sure = len(seeds) > 1 and all(each["high"] < 0 for each in apart.values())
        found.append({"trace": trace, "fleet": fleet, "against": other, "wins": sure, **apart})
    return found


def _dig(answer: dict[str, Any], path: tuple[str, ...]) -> float:
    value: Any = answer
    for name in path:
        value = value[name]
    return float(value)


def _interval(samples: Sequence[float]) -> dict[str, float]:
    return msgspec.structs.asdict(interval(samples))
