"""Keeps what workers report, moment by moment, and makes loads of it: rates from counters, a line from step times.

A worker's counters begin with its incarnation; the first time it is seen, and again after a silence, they are only
noted, so that nothing counts as having come at once. Where some of a pool are silent, the others stand for them.

What comes is counted where it comes first: in a router, then with those that ask a decode worker for blocks, then at a
prefill worker. So prompts that a shortage of decode workers held back do not count again when it ends.

The rate of arrivals is taken over the shortest time that has enough of them to mean something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from deploy.autoscale.settings import AutoscaleSettings
from deploy.autoscale.signals import DecodeLoad, Known, PoolView, PrefillLoad, Report
from deploy.autoscale.step_line import StepLine
from diptych.messages import WorkerStats

SHORTEST_S, LONGEST_S = 15.0, 60.0  # that a rate is taken over
ENOUGH_PROMPTS = 30  # then the shortest time will do: the rate's standard error is below a fifth


@dataclass(frozen=True, slots=True)
class _Interval:
    """What came between two looks."""

    ended_s: float
    lasted_s: float
    tokens: float
    computed: float  # tokens
    prompts: float  # that were computed to their end


class PrefillMeter:
    def __init__(self, settings: AutoscaleSettings) -> None:
        self._stale_after_s = settings.stale_after_s
        self._last: dict[str, WorkerStats] = {}
        self._queued_tokens = 0.0  # in routers
        self._asking = 0.0
        self._intervals: deque[_Interval] = deque()
        self._looked_s: float | None = None
        self._tokens_per_s = self._prompt_tokens = 0.0

    def look(self, now_s: float, pool: PoolView, asking: float = 0.0) -> tuple[Known, PrefillLoad]:
        """
        Args:
            asking: prompts that have left the routers and wait for decode's blocks; prefill workers do not have them.
        """
        known, fresh = _heard(pool, self._stale_after_s)
        stand_for = known.ready / known.fresh if known.fresh else 1.0
        tokens = computed = prompts = 0.0
        for worker_id, stats in fresh.items():  # what a router lets through comes to a worker: counted here, less there
            if (last := self._last.get(worker_id)) is not None:
                tokens += max(0.0, _brought(stats) - _brought(last))
                computed += max(0, stats.prompt_tokens_computed_total - last.prompt_tokens_computed_total)
                prompts += max(0, stats.transfers_total - last.transfers_total)
        between = (asking - self._asking) * self._prompt_tokens
        came = max(0.0, tokens * stand_for + pool.queued_tokens - self._queued_tokens + between)
        self._last, self._queued_tokens, self._asking = fresh, pool.queued_tokens, asking
        if self._looked_s is not None and now_s > self._looked_s:
            lasted_s = now_s - self._looked_s
            self._intervals.append(_Interval(now_s, lasted_s, came, computed * stand_for, prompts * stand_for))
        self._looked_s = now_s
        while self._intervals and self._intervals[0].ended_s <= now_s - LONGEST_S:
            self._intervals.popleft()
        measured = [stats.prefill_tokens_per_s for stats in fresh.values() if stats.prefill_tokens_per_s > 0]
        if measured:
            self._tokens_per_s = median(measured)  # one that is new and slow is outvoted
        queued = sum(stats.waiting_prefill_tokens for stats in fresh.values()) * stand_for + pool.queued_tokens
        load = PrefillLoad(queued, *self._rates(), self._tokens_per_s)
        self._prompt_tokens = load.prompt_tokens or self._prompt_tokens
        return known, load

    @property
    def num_looks(self) -> int:
        """Intervals that a rate could be taken over."""
        return len(self._intervals)

    def _rates(self) -> tuple[float, float, float]:
        """Tokens that arrive and prompts that end a second, in the shortest time with enough of these; tokens each."""
        lasted_s = tokens = computed = prompts = 0.0
        for interval in reversed(self._intervals):
            if lasted_s >= SHORTEST_S and prompts >= ENOUGH_PROMPTS:
                break
            lasted_s += interval.lasted_s
            tokens += interval.tokens
            computed += interval.computed
            prompts += interval.prompts
        prompt_tokens = computed / prompts if prompts else 0.0
        return (tokens / lasted_s, prompts / lasted_s, prompt_tokens) if lasted_s else (0.0, 0.0, 0.0)


class DecodeMeter:
    def __init__(self, settings: AutoscaleSettings) -> None:
        self._stale_after_s = settings.stale_after_s
        self._line = StepLine()
        self._blocks = 0.0
        self._waited = 0.0

    def look(self, pool: PoolView, arriving_per_s: float, ending_per_s: float) -> tuple[Known, DecodeLoad]:
        """
        Args:
            arriving_per_s, ending_per_s: prompts at prefill workers. In the long run as many sequences end here.
        """
        known, fresh = _heard(pool, self._stale_after_s)
        stand_for = known.ready / known.fresh if known.fresh else 1.0
        reports = list(fresh.values())
        self._line.keep(set(fresh))
        for worker_id, stats in fresh.items():
            self._line.note(worker_id, stats.num_running, stats.decode_step_ms)
        blocks = [float(stats.blocks_total) for stats in reports if stats.blocks_total]
        self._blocks = median(blocks) if blocks else self._blocks
        places = max((stats.max_running for stats in reports), default=0)
        waits = sum(stats.num_waiting for stats in reports) * stand_for
        waiting, self._waited = min(waits, self._waited), waits  # one that asks at this moment does not wait
        loading = sum(stats.num_loading for stats in reports) * stand_for
        running = sum(stats.num_running for stats in reports) * stand_for + loading
        busy = [stats for stats in reports if stats.num_running and stats.decode_step_ms > 0]
        in_batches = sum(stats.num_running for stats in busy)
        step_ms = in_batches / sum(stats.num_running / stats.decode_step_ms for stats in busy) if busy else 0.0
        held = sum(stats.blocks_total - stats.blocks_free - stats.blocks_cached for stats in reports) * stand_for
        line = self._line.through(in_batches / len(busy) if busy else 0.0, step_ms)
        counts = (running, loading, waiting, arriving_per_s, ending_per_s, held, self._blocks, places)
        return known, DecodeLoad(*counts, step_ms, *line, self._line.largest, self._line.is_measured)


def num_asking(pool: PoolView, stale_after_s: float) -> float:
    """Prompts that wait for blocks of a pool of decode workers, before any of them is computed elsewhere."""
    known, fresh = _heard(pool, stale_after_s)
    asking = sum(stats.waiting_by_kind.get("receive", 0) for stats in fresh.values())
    return asking * known.ready / known.fresh if known.fresh else 0.0


def _heard(pool: PoolView, stale_after_s: float) -> tuple[Known, dict[str, WorkerStats]]:
    fresh = _fresh(pool.reports, stale_after_s)
    return Known(pool.wanted, len(pool.reports), len(fresh), pool.starting_s), fresh


def _fresh(reports: Sequence[Report], stale_after_s: float) -> dict[str, WorkerStats]:
    return {r.worker_id: r.stats for r in reports if r.stats is not None and r.age_s <= stale_after_s}


def _brought(stats: WorkerStats) -> float:
    """Prompt tokens that this worker was given to compute so far."""
    return float(stats.prompt_tokens_computed_total + stats.waiting_prefill_tokens)
