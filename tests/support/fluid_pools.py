"""Two pools as fluids, in closed form: work comes at a rate, workers start after a delay, the policy decides.

Far simpler than the simulator, so that hypothesis can run hundreds: what the policy is told is exact, without noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from deploy.autoscale import Autoscaler, AutoscaleSettings, PoolView, Report
from deploy.reconcile import Kind
from diptych.messages import WorkerStats

STEP_BASE_MS, STEP_SLOPE_MS = 20.0, 1.0
PROMPT_TOKENS, BLOCKS, BLOCKS_PER_SEQUENCE = 1_000, 10_000, 10
PLACES = 128  # sequences that a decode worker runs at once
SUBSTEPS = 50  # of an interval


@dataclass
class FluidPools:
    """Attributes: history of (second, counts) after every decision."""

    settings: AutoscaleSettings
    start_s: float
    prompts_per_s: Callable[[float], float]
    tokens_per_s: float = 2_000.0  # of a prefill worker
    output_tokens: float = 100.0
    silent: Callable[[float, str], bool] = lambda _now_s, _worker_id: False
    counts: dict[Kind, int] = field(default_factory=lambda: {Kind.PREFILL: 1, Kind.DECODE: 1})
    history: list[tuple[float, dict[Kind, int]]] = field(default_factory=list)
    reasons: list[dict[Kind, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.autoscaler = Autoscaler(self.settings)
        self._serving = {kind: [f"{kind}-{n}" for n in range(count)] for kind, count in self.counts.items()}
        self._starting: dict[Kind, list[float]] = {kind: [] for kind in self.counts}  # since when
        self._computed: dict[str, float] = {}
        self._prompts: dict[str, float] = {}
        self._queue = self._running = self._waiting = 0.0
        self._next = 100

    def run(self, seconds: float) -> None:
        begin_s = self.history[-1][0] if self.history else 0.0
        now_s, step_s = begin_s, self.settings.interval_s
        while now_s < begin_s + seconds:
            now_s += step_s
            self._flow(now_s, step_s)
            self._join(now_s)
            views = {kind: self._view(kind, now_s) for kind in self.counts}
            decision = self.autoscaler.decide(now_s, views)
            self.reasons.append({kind: verdict.reason for kind, verdict in decision.verdicts.items()})
            for kind, count in decision.counts.items():
                self._want(kind, count, now_s)
            self.history.append((now_s, dict(self.counts)))

    def reversals(self, kind: Kind, since_s: float = 0.0) -> int:
        counts = [counts[kind] for now_s, counts in self.history if now_s >= since_s]
        signs = [after > before for before, after in pairwise(counts) if after != before]
        return sum(before is not after for before, after in pairwise(signs))

    def _flow(self, now_s: float, step_s: float) -> None:
        rate = self.prompts_per_s(now_s)
        prefills = self._serving[Kind.PREFILL]
        self._queue += rate * PROMPT_TOKENS * step_s
        computed = min(self._queue, self.tokens_per_s * len(prefills) * step_s)
        self._queue -= computed
        for worker_id in prefills:
            self._computed[worker_id] = self._computed.get(worker_id, 0.0) + computed / len(prefills)
            self._prompts[worker_id] = self._computed[worker_id] / PROMPT_TOKENS
        num_decode = len(self._serving[Kind.DECODE])
        for _ in range(SUBSTEPS):
            self._waiting += computed / PROMPT_TOKENS / SUBSTEPS
            begins = min(self._waiting, PLACES * num_decode - self._running)
            stays_s = self.output_tokens * self._step_ms(num_decode) / 1e3
            self._waiting -= begins
            self._running = (self._running + begins) * math.exp(-step_s / SUBSTEPS / stays_s)

    def _step_ms(self, num_decode: int) -> float:
        return STEP_BASE_MS + STEP_SLOPE_MS * self._running / max(1, num_decode)

    def _join(self, now_s: float) -> None:
        for kind, since in self._starting.items():
            for started_s in [each for each in since if now_s - each >= self.start_s]:
                since.remove(started_s)
                self._serving[kind].append(f"{kind}-{self._next}")
                self._next += 1
                self.autoscaler.started(kind, now_s - started_s)

    def _want(self, kind: Kind, count: int, now_s: float) -> None:
        self.counts[kind] = count
        serving, starting = self._serving[kind], self._starting[kind]
        starting += [now_s] * (count - len(serving) - len(starting))
        while len(serving) + len(starting) > count:
            (starting or serving).pop()

    def _view(self, kind: Kind, now_s: float) -> PoolView:
        serving = self._serving[kind]
        reports = [
            Report(id, 1e9 if self.silent(now_s, id) else 0.0, self._stats(kind, id, len(serving))) for id in serving
        ]
        return PoolView(self.counts[kind], tuple(reports), tuple(now_s - since for since in self._starting[kind]))

    def _stats(self, kind: Kind, worker_id: str, num_workers: int) -> WorkerStats:
        if kind is Kind.PREFILL:
            return WorkerStats(
                waiting_prefill_tokens=round(self._queue) if worker_id.endswith("-0") else 0,  # it never leaves
                prefill_tokens_per_s=self.tokens_per_s if self._computed.get(worker_id) else 0.0,
                prompt_tokens_computed_total=round(self._computed.get(worker_id, 0.0)),
                transfers_total=round(self._prompts.get(worker_id, 0.0)),
            )
        running = round(self._running / num_workers)
        return WorkerStats(
            num_running=running,
            num_waiting=round(self._waiting / num_workers),
            max_running=PLACES,
            decode_step_ms=self._step_ms(num_workers) if running else 0.0,
            blocks_total=BLOCKS,
            blocks_free=max(0, BLOCKS - running * BLOCKS_PER_SEQUENCE),
        )
