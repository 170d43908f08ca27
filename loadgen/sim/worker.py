"""One engine on the virtual clock: the real scheduler, a timing model instead of compute.

    input ──► scheduler ──► begin: plan, its duration ──► end: commit, tell what came of it ──► begin …

Steps that only decode are taken in runs (`BulkScheduler`): a run ends when something else will happen, when a report is
due, or with the step that is computing when an input comes. With or without runs, everything observable is the same.

A worker reports its gauges and cache events after each step that did more than decode, and every `report_interval_ms`;
until then others see the last report, as they would see the last frame of a real worker.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from diptych.engine.interface import CacheEvent, Drawn, EngineRequest, Plan, ReadyBlocks, Reservation, StepOutcome
from diptych.engine.limits import Limits
from diptych.engine.rates import Rates
from diptych.engine.sim.runner import SimRunner
from diptych.engine.sim.timing import TimingModel, shape_of
from diptych.messages import Role, Update, WorkerStats
from loadgen.sim.bulk_scheduler import BulkScheduler, Gauges
from loadgen.sim.event_loop import NS_PER_MS, NS_PER_S, EventLoop, Order


class Listener(Protocol):
    """What a worker tells, always at the moment it happens."""

    def on_reservation(self, worker: SimWorker, reservation: Reservation) -> None: ...
    def on_update(self, worker: SimWorker, update: Update) -> None: ...
    def on_ready(self, worker: SimWorker, ready: ReadyBlocks) -> None: ...
    def on_report(self, worker: SimWorker, gauges: Gauges, events: Sequence[CacheEvent]) -> None: ...
    def on_decode_run(self, worker: SimWorker, request_ids: Sequence[str], ends_ns: Sequence[int]) -> None:
        """Each of the requests got a token at each of these times."""
        ...


@dataclass(slots=True)
class _Run:
    """Decode steps under way."""

    began_ns: int
    ends_ns: list[int]  # of its steps
    done: bool = False  # the scheduler has taken them already, the clock has not


class SimWorker:
    """Attributes: index in the fleet; busy_ns, computed_tokens, num_prompts (computed and handed over): so far."""

    def __init__(
        self,
        index: int,
        role: Role,
        limits: Limits,
        num_blocks: int,
        timing: TimingModel,
        loop: EventLoop,
        listener: Listener,
        report_interval_ms: float,
        bulk: bool = True,
        runner: SimRunner | None = None,
    ) -> None:
        self.index = index
        self.role = role
        self.worker_id = f"{role.value}-{index}"
        self.scheduler = BulkScheduler(limits, num_blocks)
        self.rates = Rates()
        self.runner = runner
        self.busy_ns = 0
        self.computed_tokens = 0
        self.num_prompts = 0
        self._timing = timing
        self._loop = loop
        self._listener = listener
        self._report_interval_ns = round(report_interval_ms * NS_PER_MS)
        self._bulk = bulk and runner is None
        self._busy = False
        self._run: _Run | None = None
        self._reported_ns = 0
        self._events: list[CacheEvent] = []

    def stats(self) -> WorkerStats:
        """What a real worker would say of itself, as far as that is simulated."""
        return msgspec.structs.replace(
            self.scheduler.stats(),
            prefill_tokens_per_s=self.rates.prefill_tokens_per_s,
            decode_step_ms=self.rates.decode_step_ms,
            transfers_total=self.num_prompts,
        )

    # --- inputs: the scheduler's, at any time -----------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        self._interrupt()
        self.scheduler.add(request)
        self._wake()

    def mark_in_flight(self, request_id: str) -> None:
        self._interrupt()
        self.scheduler.mark_in_flight(request_id)

    def deliver(self, request_id: str, first_tokens: Sequence[int]) -> None:
        self._interrupt()
        self.scheduler.deliver(request_id, first_tokens)
        self._wake()

    def release(self, request_id: str) -> None:
        self._interrupt()
        self.scheduler.release(request_id)
        self._wake()

    def abort(self, request_id: str) -> None:
        self._interrupt()
        self.scheduler.abort(request_id)
        self._wake()

    def confirm_quiet(self, request_id: str) -> None:
        self._interrupt()
        self.scheduler.confirm_quiet(request_id)
        self._wake()

    # --- steps --------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Begin a step, unless one is under way."""
        if not self._busy:
            self._busy = True
            self._begin_soon()

    def _begin_soon(self) -> None:
        """After all inputs of this moment."""
        self._loop.at(self._loop.now_ns, Order.STEP_BEGIN, self._begin, self.index)

    def _begin(self) -> None:
        """The next step, if there is something to do."""
        steps = self.scheduler.quiet_steps() if self._bulk else 0
        if steps > 1:
            self._begin_run(steps)
            return
        plan = None
        while plan is None and self.scheduler.has_work:  # a step that only preempted somebody leaves work behind
            plan = self.scheduler.plan()
        if plan is None:
            self._busy = False
            self._report(at_once=True)
            return
        ms = self._timing.step_ms(shape_of(plan.rows)) if plan.rows else 0.0
        duration_ns = round(ms * NS_PER_MS)
        end_ns = self._loop.now_ns + duration_ns
        self._loop.at(end_ns, Order.STEP_END, lambda: self._end(plan, duration_ns), self.index)

    def _end(self, plan: Plan, duration_ns: int) -> None:
        drawn = self.runner.execute(plan) if self.runner else _say_own_number(plan)
        outcome = self.scheduler.commit(plan, drawn)
        self.rates.note(outcome, duration_ns / NS_PER_S)
        self.busy_ns += duration_ns
        self.computed_tokens += outcome.prompt_tokens
        self._events += outcome.cache_events
        for reservation in outcome.reservations:
            self._listener.on_reservation(self, reservation)
        for update in outcome.updates:
            self._listener.on_update(self, update)
        for ready in outcome.ready:
            self.num_prompts += ready.last
            self._clear_tail(ready)
            self._listener.on_ready(self, ready)
        self._report(at_once=_did_more_than_decode(outcome))
        self._begin_soon()

    def _begin_run(self, steps: int) -> None:
        began, due = self._loop.now_ns, self._reported_ns + self._report_interval_ns
        running = self.scheduler.running()
        context = sum(each.num_computed + 1 for each in running)
        first_ms = self._timing.decode_run_ms(len(running), context, 1)[0]
        steps = min(steps, 2 + int(max(0, due - began) / (first_ms * NS_PER_MS)))  # all that the report lets it take
        now, ends = began, []
        for duration_ms in self._timing.decode_run_ms(len(running), context, steps):
            now += round(duration_ms * NS_PER_MS)
            ends.append(now)
            if now >= due:
                break
        self._run = _Run(began, ends)
        self._schedule_end(self._run)

    def _schedule_end(self, run: _Run) -> None:
        num_steps = len(run.ends_ns)
        self._loop.at(run.ends_ns[-1], Order.STEP_END, lambda: self._end_run(run, num_steps), self.index)

    def _end_run(self, run: _Run, num_steps: int) -> None:
        if len(run.ends_ns) != num_steps:  # it was cut short since
            return
        self._take_run(run)
        self._run = None
        self._report(at_once=False)
        self._begin_soon()

    def _interrupt(self) -> None:
        """An input comes: of a run under way only the step that is computing is still finished."""
        run = self._run
        if run is None or run.done:
            return
        now = self._loop.now_ns
        num_steps = bisect_right(run.ends_ns, now)
        between_steps = num_steps and run.ends_ns[num_steps - 1] == now
        if not between_steps or self._loop.phase >= (Order.STEP_BEGIN, self.index):
            num_steps += 1  # this one has begun
        if num_steps < len(run.ends_ns):
            del run.ends_ns[num_steps:]
            self._schedule_end(run)
        self._take_run(run)

    def _take_run(self, run: _Run) -> None:
        if run.done:
            return
        run.done = True
        self.busy_ns += run.ends_ns[-1] - run.began_ns
        before = run.began_ns
        for end in run.ends_ns:
            self.rates.note_decode((end - before) / NS_PER_S * 1e3)
            before = end
        ids = [each.group.request_id for each in self.scheduler.running()]
        self.scheduler.decode_many(len(run.ends_ns))
        self._events += self.scheduler.pool.take_events()
        self._listener.on_decode_run(self, ids, run.ends_ns)

    def _report(self, *, at_once: bool) -> None:
        now = self._loop.now_ns
        if at_once or now >= self._reported_ns + self._report_interval_ns:
            self._reported_ns = now
            events, self._events = self._events, []
            self._listener.on_report(self, self.scheduler.gauges(), events)

    def _clear_tail(self, ready: ReadyBlocks) -> None:
        """As `Engine` does: whole blocks are pushed, and nothing of another request may be in them."""
        if self.runner and (partial_block := self.scheduler.partial_block(ready)) is not None:
            self.runner.clear_tail(*partial_block)


def _say_own_number(plan: Plan) -> list[list[Drawn]]:
    """Without content a completion repeats what it began with: no two requests' completions share a block's name.

    Requests are numbered, and their first token is their number (`SimRequest.number`, which is the seed).
    """
    return [[Drawn(draw.choice, draw.sampling.seed, None) for draw in row.draws] for row in plan.rows]


def _did_more_than_decode(outcome: StepOutcome) -> bool:
    joined_or_left = outcome.reservations or any(update.finish_reason for update in outcome.updates)
    return bool(outcome.prompt_tokens or joined_or_left or outcome.decode_rows < outcome.computed_tokens)
