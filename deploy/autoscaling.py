"""Lets the load decide how many workers there are: asks `deploy.autoscale` now and then, with what the monitor sees.

Mode "on" changes what is wanted, "advise" only says what it would do, in the log and in the status. A pool whose count
a user has said is pinned, and one without workers is left alone. Starts nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import structlog

from deploy.autoscale import Autoscaler, AutoscaleSettings, Bounds, Decision, PoolView, Report
from deploy.hosted import Hosted
from deploy.monitor import Monitor
from deploy.pools import Pools
from deploy.reconcile import Health, Kind, State
from deploy.status import AutoscaleStatus, PoolAutoscale
from deploy.wanted import POOLS

LOG = structlog.get_logger()


class Autoscaling:
    def __init__(
        self, settings: AutoscaleSettings, pools: Pools, monitor: Monitor, is_leaving: Callable[[Hosted], bool]
    ) -> None:
        """
        Args:
            pools: that have taken over what a predecessor left.
        """
        self._settings = settings
        self._pools = pools
        self._monitor = monitor
        self._is_leaving = is_leaving
        self._autoscaler = Autoscaler(settings, pools.start_s)
        self._decision = Decision({})
        self._decided_s: float | None = None
        self._starting_since_s: dict[str, float] = {}

    def look(self, now_s: float) -> None:
        """See who has begun to serve; decide, when it is time. To be called about once a second, or more often."""
        if self._settings.mode == "off" or self._pools.wanted.down:
            return
        self._note_starts(now_s)
        if self._decided_s is not None and now_s - self._decided_s < self._settings.interval_s:
            return
        before, self._decided_s = self._decision, now_s
        wanted = self._pools.wanted
        judged = {kind: self._view(kind, now_s) for kind in POOLS if wanted.counts.get(kind)}
        self._decision = self._autoscaler.decide(now_s, judged, {kind: self._bounds(kind) for kind in judged})
        self._say(before)
        if self._settings.mode == "on":
            self._pools.wanted = wanted.scaled(self._decision.counts)

    def status(self, now_s: float) -> AutoscaleStatus | None:
        if self._decided_s is None:
            return None
        pools = {kind: self._pool_status(kind) for kind in self._decision.verdicts}
        return AutoscaleStatus(mode=self._settings.mode, pools=pools, decided_s_ago=now_s - self._decided_s)

    def _pool_status(self, kind: Kind) -> PoolAutoscale:
        verdict, bounds = self._decision.verdicts[kind], self._settings.bounds(kind)
        return PoolAutoscale(
            min=bounds.min,
            max=bounds.max,
            pinned=kind in self._pools.wanted.pinned,
            wanted=verdict.wanted,
            needed=verdict.needed,
            reason=verdict.reason,
            start_s=self._autoscaler.start_s[kind],
        )

    def _bounds(self, kind: Kind) -> Bounds:
        wanted = self._pools.wanted
        if kind in wanted.pinned:
            return Bounds(min=wanted.counts[kind], max=wanted.counts[kind])
        return self._settings.bounds(kind)

    def _view(self, kind: Kind, now_s: float) -> PoolView:
        present = [hosted for hosted in self._pools if hosted.kind is kind and not self._is_leaving(hosted)]
        starting_s = [now_s - self._starting_since_s[h.id] for h in present if h.id in self._starting_since_s]
        reports = [self._report(hosted) for hosted in present if self._serves(hosted)]
        queued_tokens = self._monitor.queued_tokens if kind is Kind.PREFILL else 0
        return PoolView(self._pools.wanted.counts[kind], tuple(reports), tuple(starting_s), queued_tokens)

    def _report(self, hosted: Hosted) -> Report:
        if (vitals := self._monitor.vitals(hosted.id)) is None:
            return Report(hosted.worker_id, math.inf, None)
        return Report(hosted.worker_id, vitals.silent_s, vitals.stats)

    def _serves(self, hosted: Hosted) -> bool:
        is_up = hosted.state is State.RUNNING and self._monitor.health(hosted.id) is not Health.LOST
        return is_up and not self._monitor.is_probing(hosted.id)

    def _note_starts(self, now_s: float) -> None:
        """How long workers take from being asked for until requests are placed on them."""
        workers = [hosted for hosted in self._pools if hosted.kind in POOLS]
        for hosted in workers:
            if hosted.state is State.STARTING:
                self._starting_since_s.setdefault(hosted.id, now_s)
            elif hosted.id in self._starting_since_s and self._serves(hosted):
                self._autoscaler.started(hosted.kind, now_s - self._starting_since_s.pop(hosted.id))
                self._pools.start_s = dict(self._autoscaler.start_s)
        alive = {hosted.id for hosted in workers if hosted.state in (State.STARTING, State.RUNNING)}
        self._starting_since_s = {id: since for id, since in self._starting_since_s.items() if id in alive}

    def _say(self, before: Decision) -> None:
        for kind, verdict in self._decision.verdicts.items():
            said = before.verdicts.get(kind)
            if verdict.wanted != verdict.now and (said is None or said.wanted != verdict.wanted):
                LOG.info(
                    "autoscale",
                    mode=self._settings.mode,
                    pool=str(kind),
                    now=verdict.now,
                    wanted=verdict.wanted,
                    reason=verdict.reason,
                )
