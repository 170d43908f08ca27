"""Runs of a simulated fleet whose size the autoscaling policy decides, or another scaler, or nobody.

The policy is the very code that the controller asks. It is told what real workers would say, at the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from benchmarks.sim.loads import Load
from deploy.autoscale import Autoscaler, AutoscaleSettings, Decision, PoolView, Report
from deploy.autoscale.prefill import for_arrivals
from deploy.autoscale.signals import PrefillLoad
from deploy.reconcile import Kind
from diptych.engine.sim.timing import StepShape
from diptych.messages import Role
from loadgen.sim.cluster import Cluster
from loadgen.sim.config import Fleet, SimConfig
from loadgen.sim.elastic import Change, Elastic, PoolState, Scaler
from loadgen.sim.metrics import Limits
from loadgen.sim.workload import OpenLoop

KINDS = {Role.PREFILL: Kind.PREFILL, Role.DECODE: Kind.DECODE}
Silent = Callable[[float, str], bool]  # whether a worker says nothing at a time


@dataclass
class PolicyScaler:
    """`loadgen.sim.elastic.Scaler` by the real policy. Attributes: decisions, all of them."""

    autoscaler: Autoscaler
    silent: Silent = lambda _now_s, _worker_id: False
    decisions: list[tuple[float, Decision]] = field(default_factory=list)

    def scale(self, now_s: float, pools: Mapping[Role, PoolState]) -> Mapping[Role, int]:
        views = {KINDS[role]: self._view(now_s, pool) for role, pool in pools.items()}
        decision = self.autoscaler.decide(now_s, views)
        self.decisions.append((now_s, decision))
        return {role: decision.verdicts[kind].wanted for role, kind in KINDS.items()}

    def started(self, role: Role, took_s: float) -> None:
        self.autoscaler.started(KINDS[role], took_s)

    def _view(self, now_s: float, pool: PoolState) -> PoolView:
        reports = [
            Report(worker.worker_id, 1e9 if self.silent(now_s, worker.worker_id) else 0.0, worker.stats())
            for worker in pool.serving
        ]
        return PoolView(pool.wanted, tuple(reports), pool.starting_s, pool.queued_tokens)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    attainment: float  # share of the requests within both limits
    ttft_attainment: float
    tpot_attainment: float
    prefill_hours: float  # of workers, from the moment they were asked for
    decode_hours: float
    reversals: int  # of the pool that has more of them
    oscillations: int  # of both pools
    lasted_hours: float
    most: tuple[int, int]  # prefill and decode workers wanted at once
    trace_hash: str

    @property
    def worker_hours(self) -> float:
        return self.prefill_hours + self.decode_hours


def run_elastic(
    config: SimConfig,
    load: Load,
    settings: AutoscaleSettings,
    *,
    start_s: float,
    seed: int,
    silent: Silent = lambda _now_s, _worker_id: False,
    tail_s: float = 0.0,
) -> tuple[Outcome, Elastic, PolicyScaler]:
    """With the policy in charge, from each pool's minimum.

    Args:
        start_s: that a worker really takes until it serves.
        tail_s: after the last request, for which the fleet is still looked at.
    """
    scaler = PolicyScaler(Autoscaler(settings), silent)
    fleet = Fleet(settings.prefill.min, settings.decode.min)
    outcome, elastic = run_scaled(config, load, settings, scaler, fleet, start_s=start_s, seed=seed, tail_s=tail_s)
    return outcome, elastic, scaler


def run_scaled(
    config: SimConfig,
    load: Load,
    settings: AutoscaleSettings,
    scaler: Scaler,
    fleet: Fleet,
    *,
    start_s: float,
    seed: int,
    tail_s: float = 0.0,
) -> tuple[Outcome, Elastic]:
    """With any scaler in charge.

    Args:
        settings: of them, the limits and the interval.
        fleet: that is there at the beginning.
    """
    cluster = Cluster(replace(config, fleet=fleet), OpenLoop(load.requests(seed)))
    elastic = Elastic(cluster, scaler, start_s, settings.interval_s, load.duration_s + tail_s)
    elastic.begin()
    cluster.run()
    first = {Role.PREFILL: fleet.num_prefill, Role.DECODE: fleet.num_decode}
    most = {role: max([first[role], *(c.after for c in elastic.changes if c.role is role)]) for role in Role}
    hours = {role: seconds / 3600 for role, seconds in elastic.worker_s.items()}
    memory_s = settings.down_after_s + 2 * start_s  # a window, a start-up, and what came in it is worked off
    turns = max(elastic.num_reversals.values()), num_oscillations(elastic.changes, load, memory_s)
    lasted_hours = _lasted_hours(cluster, load)
    return _outcome(cluster, settings, hours, turns, lasted_hours, (most[Role.PREFILL], most[Role.DECODE])), elastic


def num_oscillations(changes: Sequence[Change], load: Load, memory_s: float) -> int:
    """Of both pools, the turns that no change of the load explains: from `memory_s` before the step that is undone on,
    the rate was one and the same. What begins with the load is explained by it."""
    found = 0
    for role in Role:
        mine = [change for change in changes if change.role is role]
        for before, after in pairwise(mine):
            turned = (before.after > before.before) is not (after.after > after.before)
            found += turned and load.is_level(before.at_s - memory_s, after.at_s)
    return found


def run_fixed(config: SimConfig, load: Load, settings: AutoscaleSettings, fleet: Fleet, seed: int) -> Outcome:
    """With a fleet that stays as it is, paid for until the last request has ended."""
    cluster = Cluster(replace(config, fleet=fleet), OpenLoop(load.requests(seed)))
    cluster.run()
    hours = _lasted_hours(cluster, load)
    per_role = {Role.PREFILL: fleet.num_prefill * hours, Role.DECODE: fleet.num_decode * hours}
    return _outcome(cluster, settings, per_role, (0, 0), hours, (fleet.num_prefill, fleet.num_decode))


def sized_for(config: SimConfig, load: Load, settings: AutoscaleSettings, requests_per_s: float) -> Fleet:
    """The fixed fleet that somebody who knows the engine would choose for a rate, by the policy's own models."""
    shape = StepShape(((0, round(load.prompt_tokens)),), 0, 0)
    prompt_s = config.timing.step_ms(shape) / 1e3
    tokens_per_s = load.prompt_tokens / prompt_s
    arriving = PrefillLoad(0.0, requests_per_s * load.prompt_tokens, requests_per_s, load.prompt_tokens, tokens_per_s)
    prefill = for_arrivals(arriving, max(settings.ttft_ms / 1e3 - prompt_s, 0.1), settings.attainment)
    context = load.prompt_tokens + load.output_tokens / 2
    batch = 1
    while config.timing.step_ms(StepShape((), batch + 1, round((batch + 1) * context))) <= 0.9 * settings.tpot_ms:
        batch += 1
    blocks = config.num_blocks * settings.kv_target / (context / config.limits.block_size)
    batch = max(1, min(batch, int(blocks), config.limits.max_running))
    step_s = config.timing.step_ms(StepShape((), batch, round(batch * context))) / 1e3
    decode = math.ceil(requests_per_s * load.output_tokens * step_s / batch)
    return Fleet(max(1, prefill), max(1, decode))


def _lasted_hours(cluster: Cluster, load: Load) -> float:
    """Until the last token; timers that nobody waits for may run on."""
    return max(load.duration_s, max(record.last_token_ns for record in cluster.records) / 1e9) / 3600


def _outcome(
    cluster: Cluster,
    settings: AutoscaleSettings,
    hours: Mapping[Role, float],
    turns: tuple[int, int],
    lasted_hours: float,
    most: tuple[int, int],
) -> Outcome:
    def met(limits: Limits) -> float:
        return sum(limits.met_by(record) for record in cluster.records) / max(1, len(cluster.records))

    return Outcome(
        met(Limits(settings.ttft_ms, settings.tpot_ms)),
        met(Limits(settings.ttft_ms, math.inf)),
        met(Limits(math.inf, settings.tpot_ms)),
        hours[Role.PREFILL],
        hours[Role.DECODE],
        *turns,
        lasted_hours,
        most,
        cluster.loop.digest,
    )
