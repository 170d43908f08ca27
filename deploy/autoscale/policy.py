"""The autoscaling policy: what the pools look like at a moment in, how many workers each should have out.

Prefill and decode are judged apart, each by its own limit. What is wanted follows from the load, not from the last
decision: workers that are starting are in it already, so asking again while they load asks for no more of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from deploy.autoscale import decode, prefill
from deploy.autoscale.meter import DecodeMeter, PrefillMeter, num_asking
from deploy.autoscale.settings import AutoscaleSettings, Bounds
from deploy.autoscale.signals import Decision, Need, PoolView, Verdict
from deploy.autoscale.steadying import Steadying
from deploy.reconcile import Kind

LEAST_LOOKS = 2  # intervals before a rate means anything
START_WEIGHT = 0.3  # of the latest start in what a start is expected to take


class Autoscaler:
    """Holds what was seen so far. Asked every `settings.interval_s`; times are seconds of one clock.

    Attributes: start_s: what a worker of a kind is expected to take until it serves.
    """

    def __init__(self, settings: AutoscaleSettings, start_s: Mapping[Kind, float] | None = None) -> None:
        """
        Args:
            start_s: as another one has learnt it.
        """
        self._settings = settings
        self.start_s = dict.fromkeys((Kind.PREFILL, Kind.DECODE), settings.start_s) | dict(start_s or {})
        self._measured = set(start_s or {})
        self._prefill_meter = PrefillMeter(settings)
        self._decode_meter = DecodeMeter(settings)
        self._prompts_per_s = 0.0, 0.0  # that arrive at prefill workers and end there; zeros where there are none
        self._asking = 0.0  # prompts that wait for decode's blocks
        self._steadying = {kind: Steadying(settings) for kind in (Kind.PREFILL, Kind.DECODE)}

    def started(self, kind: Kind, took_s: float) -> None:
        """A worker has begun to serve."""
        before = self.start_s[kind] if kind in self._measured else took_s
        self._measured.add(kind)
        self.start_s[kind] = before + START_WEIGHT * (took_s - before)

    def decide(
        self, now_s: float, pools: Mapping[Kind, PoolView], bounds: Mapping[Kind, Bounds] | None = None
    ) -> Decision:
        """
        Args:
            pools: as they are; one that is missing is not judged.
            bounds: other ones than the settings', for pools that are pinned.
        """
        if Kind.PREFILL not in pools:
            self._prompts_per_s = 0.0, 0.0  # nobody says any more what comes
        self._asking = num_asking(pools.get(Kind.DECODE, PoolView(0)), self._settings.stale_after_s)
        judges = {Kind.PREFILL: self._judge_prefill, Kind.DECODE: self._judge_decode}
        within = {Kind.PREFILL: self._settings.prefill, Kind.DECODE: self._settings.decode} | dict(bounds or {})
        return Decision({kind: judges[kind](now_s, pools[kind], within[kind]) for kind in judges if kind in pools})

    def _judge_prefill(self, now_s: float, pool: PoolView, bounds: Bounds) -> Verdict:
        known, load = self._prefill_meter.look(now_s, pool, self._asking)
        self._prompts_per_s = load.arriving_per_s, load.ending_per_s
        settings = self._settings

        def need(factor: float) -> Need:
            if self._prefill_meter.num_looks < LEAST_LOOKS:
                return Need(0, "not observed for long enough", known=False)
            start_s = self.start_s[Kind.PREFILL]
            return prefill.needed(
                load.grown(factor), known.ready, known.starting_s, start_s, settings.ttft_ms, settings.attainment
            )

        return self._steadying[Kind.PREFILL].steady(now_s, known, need(1.0), need(1 + settings.margin), bounds)

    def _judge_decode(self, now_s: float, pool: PoolView, bounds: Bounds) -> Verdict:
        known, load = self._decode_meter.look(pool, *self._prompts_per_s)
        settings = self._settings

        def need(factor: float) -> Need:
            limits = (settings.ttft_ms, settings.tpot_ms, settings.kv_target)
            return decode.needed(load.grown(factor), known.ready, self.start_s[Kind.DECODE], *limits)

        return self._steadying[Kind.DECODE].steady(now_s, known, need(1.0), need(1 + settings.margin), bounds)
