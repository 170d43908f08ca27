"""One engine: a scheduler that decides, a runner that computes, a clock that measures.

Whatever the runner is, a worker meets its model here. Inputs and `step` come from one caller at a time. Knows nothing
about sockets, transfers or routers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from msgspec.structs import replace

from diptych.engine.interface import EngineRequest, Plan, ReadyBlocks, Runner, StepOutcome
from diptych.engine.limits import Limits
from diptych.engine.rates import Rates
from diptych.engine.scheduler import Scheduler
from diptych.messages import Update, WorkerStats


@dataclass(slots=True)
class _Marks:
    """When a request passed its stations, in the clock's seconds."""

    added: float  # or handed over to be added
    admitted: float | None = None  # was given its blocks
    delivered: float | None = None  # RECEIVE: could start to compute


class Engine:
    """Runs requests step by step. What the inputs mean is said in `diptych.engine.scheduler.Scheduler`."""

    def __init__(self, runner: Runner, limits: Limits, clock: Callable[[], float] = time.perf_counter) -> None:
        self.scheduler = Scheduler(limits, runner.num_blocks)
        self._runner = runner
        self._clock = clock
        self._rates = Rates()
        self.on_ready: Callable[[list[ReadyBlocks]], None] | None = None  # told of blocks before their step has ended
        self._marks: dict[str, _Marks] = {}  # until the request's first update or its end

    def add(self, request: EngineRequest, since: float | None = None) -> None:
        """
        Args:
            since: when it began to wait, by `now`: it may have waited for a step to end. None: just now.

        Raises:
            PromptTooLong, BadRequest: it is not taken.
        """
        self.scheduler.add(request)
        self._marks[request.request_id] = _Marks(self._clock() if since is None else since)

    def mark_in_flight(self, request_id: str) -> bool:
        return self.scheduler.mark_in_flight(request_id)

    def deliver(self, request_id: str, first_tokens: Sequence[int]) -> bool:
        return self._note_delivery(request_id, self.scheduler.deliver(request_id, first_tokens))

    def recompute(self, request_id: str, first_tokens: Sequence[int]) -> bool:
        return self._note_delivery(request_id, self.scheduler.recompute(request_id, first_tokens))

    def hold(self, request_id: str) -> bool:
        self._marks.pop(request_id, None)
        return self.scheduler.hold(request_id)

    def release(self, request_id: str) -> bool:
        return self.scheduler.release(request_id)

    def abort(self, request_id: str) -> bool:
        self._marks.pop(request_id, None)
        return self.scheduler.abort(request_id)

    def confirm_quiet(self, request_id: str) -> bool:
        return self.scheduler.confirm_quiet(request_id)

    def clear_cache(self) -> None:
        self.scheduler.clear_cache()

    def now(self) -> float:
        """What a request's deadline is compared with, in seconds."""
        return self._clock()

    @property
    def has_work(self) -> bool:
        """Call `step` again; if False, nothing will happen before the next input or deadline."""
        return self.scheduler.has_work

    @property
    def next_deadline_s(self) -> float | None:
        """Seconds until a step may have to end a request, at least 0; None: no request has a deadline."""
        deadline = self.scheduler.next_deadline
        return None if deadline == inf else max(0.0, deadline - self._clock())

    def step(self) -> StepOutcome:
        """End what is overdue, then plan, compute, take in. The outcome is `idle` if there was nothing to do."""
        began = self._clock()
        expired = self._expire(began)
        plan = self.scheduler.plan()
        if plan is None:
            return StepOutcome(updates=expired)
        self._note_admissions(began)
        drawn = self._runner.execute(plan, partial(self._kv_written, plan)) if plan.rows else []
        outcome = self.scheduler.commit(plan, drawn)
        self._clear_tails(outcome.ready)
        ended = self._clock()
        self._rates.note(outcome, ended - began)
        outcome.updates = expired + [self._with_times(update, ended) for update in outcome.updates]
        return outcome

    def stats(self) -> WorkerStats:
        return replace(
            self.scheduler.stats(),
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            decode_step_ms=self._rates.decode_step_ms,
        )

    def check(self) -> None:
        """Raises AssertionError if the book-keeping does not add up."""
        self.scheduler.check()

    def _expire(self, now: float) -> list[Update]:
        expired = self.scheduler.expire(now)
        for update in expired:
            self._marks.pop(update.request_id, None)
        return expired

    def _kv_written(self, plan: Plan) -> None:
        """In the middle of a step: what can be pushed need not wait for the head and the sampler."""
        if self.on_ready is not None and (ready := self.scheduler.written(plan)):
            self._clear_tails(ready)
            self.on_ready(ready)

    def _clear_tails(self, ready: Sequence[ReadyBlocks]) -> None:
        """Whole blocks are pushed: behind the prompt's end there must be nothing of whoever had the block before."""
        for each in ready:
            if (partial_block := self.scheduler.partial_block(each)) is not None:
                self._runner.clear_tail(*partial_block)

    def _note_admissions(self, now: float) -> None:
        for request_id in self.scheduler.admitted:
            marks = self._marks.get(request_id)
            if marks is not None and marks.admitted is None:
                marks.admitted = now

    def _note_delivery(self, request_id: str, known: bool) -> bool:
        if request_id in self.scheduler:
            if known:
                self._marks[request_id].delivered = self._clock()
        else:  # ended by its first tokens, or never known
            self._marks.pop(request_id, None)
        return known

    def _with_times(self, update: Update, now: float) -> Update:
        marks = self._marks.pop(update.request_id, None)
        if update.stats is None or marks is None or marks.admitted is None:
            return update
        started = marks.admitted if marks.delivered is None else marks.delivered
        queue_ms, compute_ms = (marks.admitted - marks.added) * 1e3, (now - started) * 1e3
        return replace(update, stats=replace(update.stats, queue_ms=queue_ms, compute_ms=compute_ms))
