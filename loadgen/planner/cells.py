"""Fleets of so many workers, and what one seed of one of them comes to."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean

import msgspec

from loadgen.planner.engines import Engine
from loadgen.planner.traffic import Traffic
from loadgen.sim.cluster import Cluster, simulate
from loadgen.sim.config import Fleet, remote_prefill_of
from loadgen.sim.metrics import Limits, summarise
from loadgen.sim.policies import policy_named


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of one fleet: one seed, or means over several."""

    attainment: float  # share of all requests within both limits; who was refused is a miss
    goodput_rps: float  # requests within both, a second
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    tpot_mean_ms: float
    tpot_p90_ms: float
    reuse: float
    failed: float
    utilisation_prefill: float
    utilisation_decode: float

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: more requests within the limits; of equals the one that answers sooner."""
        return self.attainment, -self.ttft_p90_ms


Measure = Callable[[Fleet, int], Outcome]


def ratios(num_workers: int) -> list[Fleet]:
    """Every way to split so many workers into prefill and decode, fewest prefill workers first."""
    return [Fleet(prefill, num_workers - prefill) for prefill in range(1, num_workers)]


def colocated(num_workers: int) -> Fleet:
    return Fleet(0, num_workers)


class Evaluator:
    """Simulates a fleet under one seed, once.

    Attributes: num_runs and wall_s so far, of what was really simulated.
    """

    def __init__(
        self,
        traffic: Traffic,
        engine: Engine,
        limits: Limits,
        policy: str = "min_ttft",
        on_run: Callable[[Fleet, int, Outcome], None] = lambda fleet, seed, outcome: None,
    ) -> None:
        self.num_runs = 0
        self.wall_s = 0.0
        self._traffic = traffic
        self._engine = engine
        self._limits = limits
        self._policy = policy
        self._on_run = on_run
        self._known: dict[tuple[Fleet, int], Outcome] = {}

    def __call__(self, fleet: Fleet, seed: int) -> Outcome:
        if (fleet, seed) not in self._known:
            began = time.perf_counter()
            placing = policy_named(self._policy, seed)
            config = self._engine.config(fleet, placing, remote_prefill_of(self._policy))
            outcome = outcome_of(simulate(config, self._traffic.arrivals(seed)), self._limits)
            self._known[fleet, seed] = outcome
            self.num_runs += 1
            self.wall_s += time.perf_counter() - began
            self._on_run(fleet, seed, outcome)
        return self._known[fleet, seed]


def outcome_of(cluster: Cluster, limits: Limits) -> Outcome:
    found = summarise(cluster, limits)
    return Outcome(
        attainment=found.attainment,
        goodput_rps=found.goodput_rps,
        ttft_mean_ms=found.ttft_ms.mean,
        ttft_p50_ms=found.ttft_ms.p50,
        ttft_p90_ms=found.ttft_ms.p90,
        ttft_p99_ms=found.ttft_ms.p99,
        tpot_mean_ms=found.tpot_ms.mean,
        tpot_p90_ms=found.tpot_ms.p90,
        reuse=found.reuse,
        failed=found.num_failed,
        utilisation_prefill=found.utilisation_prefill,
        utilisation_decode=found.utilisation_decode,
    )


def mean_of(outcomes: list[Outcome]) -> Outcome:
    names = Outcome.__struct_fields__
    return Outcome(**{name: fmean([getattr(each, name) for each in outcomes]) for name in names})
