"""Scalers that know what no policy can know, to tell what is unavoidable from what a policy could do better.

Both know the engine's models and the rate of requests, and ask for the fleet that `sized_for` has for it.

Told       the rate now, at the moment it changes: all that is left is a worker's start, and working off what came in it
Foresight  the rate in one start-up from now, too: nothing is left but chance, and nobody is paid for too long

Neither knows the single requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.sim.elastic import sized_for
from benchmarks.sim.loads import Load
from deploy.autoscale import AutoscaleSettings
from deploy.autoscale.prefill import backlog_when_started
from deploy.autoscale.signals import PrefillLoad
from diptych.engine.sim.timing import StepShape
from diptych.messages import Role
from loadgen.sim.config import Fleet, SimConfig
from loadgen.sim.elastic import PoolState


@dataclass
class Sizes:
    """The fixed fleet for each rate, remembered."""

    config: SimConfig
    load: Load
    settings: AutoscaleSettings
    known: dict[float, Fleet] = field(default_factory=dict)

    def fleet(self, requests_per_s: float) -> Fleet:
        rate = round(requests_per_s, 2)
        if rate not in self.known:
            self.known[rate] = sized_for(self.config, self.load, self.settings, rate)
        return self.known[rate]

    def counts(self, requests_per_s: float) -> dict[Role, int]:
        fleet = self.fleet(requests_per_s)
        prefill = self.settings.prefill.clamp(fleet.num_prefill)
        return {Role.PREFILL: prefill, Role.DECODE: self.settings.decode.clamp(fleet.num_decode)}


@dataclass
class Foresight:
    """`loadgen.sim.elastic.Scaler` that knows the rates to come."""

    sizes: Sizes
    start_s: float

    def scale(self, now_s: float, pools: Mapping[Role, PoolState]) -> Mapping[Role, int]:
        ahead_s = self.start_s + 2 * self.sizes.settings.interval_s
        return self.sizes.counts(self.sizes.load.highest(now_s, now_s + ahead_s))

    def started(self, role: Role, took_s: float) -> None:
        """It knew."""


@dataclass
class Told:
    """The same that is told the rate now, and gives nothing back for as long as the policy would not."""

    sizes: Sizes
    start_s: float
    recent: deque[tuple[float, dict[Role, int]]] = field(default_factory=deque)

    def scale(self, now_s: float, pools: Mapping[Role, PoolState]) -> Mapping[Role, int]:
        rate = self.sizes.load.highest(now_s, now_s)
        self.recent.append((now_s, self.sizes.counts(rate + self._behind(rate, pools[Role.PREFILL]) / self.start_s)))
        while self.recent[0][0] < now_s - self.sizes.settings.down_after_s:
            self.recent.popleft()
        return {role: max(counts[role] for _, counts in self.recent) for role in Role}

    def started(self, role: Role, took_s: float) -> None:
        """It knew."""

    def _behind(self, rate: float, pool: PoolState) -> float:
        """Prompts that will wait when workers asked for now begin to serve."""
        tokens = self.sizes.load.prompt_tokens
        queued = pool.queued_tokens + sum(each.scheduler.stats().waiting_prefill_tokens for each in pool.serving)
        tokens_per_s = 1e3 * tokens / self.sizes.config.timing.step_ms(StepShape(((0, round(tokens)),), 0, 0))
        load = PrefillLoad(queued, rate * tokens, rate, tokens, tokens_per_s)
        return backlog_when_started(load, len(pool.serving), pool.starting_s, self.start_s) / tokens
