"""Requests of every kind and priority, aborts, deadlines, deliveries, guesses and steps in any order on a pool that is
too small for them.

After every rule the scheduler's own invariants hold; every token equals that of an isolated run; at the end every
request ends and only cached and free blocks remain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from fake_runner import VOCABULARY, FakeRunner, cells_of, reference
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diptych.engine.interface import EngineRequest, Kind, Plan, ReadyBlocks, Reservation, StepOutcome
from diptych.engine.limits import Limits
from diptych.engine.scheduler import Scheduler
from diptych.engine.sequence import finish_reason
from diptych.errors import DeadlineExceeded, PromptTooLong
from diptych.messages import FinishReason, SamplingParams, Update

BLOCK_SIZE = 4
STEMS = ([7] * 14, [7] * 5 + [8] * 9, list(range(14)))  # shared prefixes of several lengths


@dataclass
class Life:
    """What the outside world knows of one request."""

    request: EngineRequest
    outputs: list[list[int]]
    reasons: list[FinishReason | None]
    reservation: Reservation | None = None
    in_flight: bool = False
    held: bool = False
    reported: bool = False
    announced: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return None not in self.reasons and self.request.kind is not Kind.PREFILL

    @property
    def slots(self) -> list[int]:
        assert self.reservation is not None
        return [slot.block for slot in self.reservation.slots]

    def take(self, choice: int, token: int) -> None:
        expected, _ = reference(self.request.prompt, self.request.sampling, choice)
        position = len(self.outputs[choice])
        assert self.reasons[choice] is None, "a token after the last one"
        assert token == expected[position], f"token {position} of choice {choice} differs from an isolated run"
        self.outputs[choice].append(token)
        self.reasons[choice] = finish_reason(token, position, self.request.sampling)

    @property
    def first_tokens(self) -> list[int]:
        sampling = self.request.sampling
        return [reference(self.request.prompt, sampling, choice)[0][0] for choice in range(sampling.n)]


samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 9),
    seed=st.integers(0, 3),
    n=st.sampled_from([1, 1, 2, 3]),
    min_tokens=st.integers(0, 3),
    stop_token_ids=st.sampled_from([(), tuple(range(0, VOCABULARY, 5)), tuple(range(0, VOCABULARY, 2))]),
    logprobs=st.sampled_from([None, 1]),
    top_k=st.sampled_from([0, 0, 1, 3]),
)
prompts = st.builds(lambda stem, cut, tail: tuple(stem[:cut] + tail), st.sampled_from(STEMS), st.integers(0, 14),
                    st.lists(st.integers(0, 2), min_size=1, max_size=3))  # fmt: skip


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lives: dict[str, Life] = {}  # known to the scheduler
        self.quarantined: dict[str, list[int]] = {}
        self.num_steps = 0
        self.stored: set[bytes] = set()
        self.num_added = 0
        self.now = 0.0

    @initialize(
        num_blocks=st.integers(4, 14),
        batch=st.integers(1, 12),
        running=st.integers(1, 4),
        guesses=st.sampled_from([0, 1, 3, 7]),
        ngram=st.integers(1, 2),
    )
    def begin(self, num_blocks: int, batch: int, running: int, guesses: int, ngram: int) -> None:
        self.limits = Limits(batch, running, BLOCK_SIZE, 64, guesses, ngram, 3)
        self.scheduler = Scheduler(self.limits, num_blocks)
        self.runner = FakeRunner(num_blocks, BLOCK_SIZE)

    # --- inputs

    @rule(
        kind=st.sampled_from(Kind),
        prompt=prompts,
        sampling=samplings,
        skip=st.integers(0, 3),
        priority=st.sampled_from([0, 0, 1, -1, 10]),
        time_left=st.sampled_from([inf, inf, 1.0, 5.0]),
    )
    def add(
        self,
        kind: Kind,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        skip: int,
        priority: int,
        time_left: float,
    ) -> None:
        first_block = min(skip, (len(prompt) - 1) // BLOCK_SIZE) if kind is Kind.PREFILL else 0
        deadline, name = self.now + time_left, str(self.num_added)
        request = EngineRequest(name, kind, prompt, sampling, b"k" * 32, first_block, priority, deadline)
        self.num_added += 1
        try:
            self.scheduler.add(request)
        except PromptTooLong:
            assert len(prompt) + sampling.max_tokens - 1 > self.runner.num_blocks * BLOCK_SIZE
            return
        nobody: list[FinishReason | None] = [None] * sampling.n
        self.lives[request.request_id] = Life(request, [[] for _ in nobody], nobody)

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._abort(data.draw(st.sampled_from(sorted(self.lives))))

    @precondition(lambda self: any(life.reservation and not life.in_flight for life in self.lives.values()))
    @rule(data=st.data())
    def mark_in_flight(self, data: st.DataObject) -> None:
        life = self._pick(data, lambda life: life.reservation and not life.in_flight)
        assert self.scheduler.mark_in_flight(life.request.request_id)
        assert not self.scheduler.mark_in_flight(life.request.request_id)
        life.in_flight = True

    @precondition(lambda self: any(life.in_flight for life in self.lives.values()))
    @rule(data=st.data(), corrupt=st.booleans())
    def deliver(self, data: st.DataObject, corrupt: bool) -> None:
        self._deliver(self._pick(data, lambda life: life.in_flight), corrupt)

    @precondition(lambda self: any(life.held for life in self.lives.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._release(self._pick(data, lambda life: life.held))

    @precondition(lambda self: any(life.request.kind is Kind.PREFILL and not life.held for life in self.lives.values()))
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        self._hold(self._pick(data, lambda life: life.request.kind is Kind.PREFILL and not life.held))

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def late_write(self, data: st.DataObject) -> None:
        self.runner.garbage(self.quarantined[data.draw(st.sampled_from(sorted(self.quarantined)))])

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def confirm_quiet(self, data: st.DataObject) -> None:
        self._confirm_quiet(data.draw(st.sampled_from(sorted(self.quarantined))))

    @rule()
    def time_passes(self) -> None:
        self.now += 1.0
        overdue = {key for key, life in self.lives.items() if life.request.deadline <= self.now and not life.held}
        updates = self.scheduler.expire(self.now)
        assert {update.request_id for update in updates} == overdue
        for update in updates:
            assert update.error is not None
            assert update.error.code == DeadlineExceeded.code
            life = self.lives[update.request_id]
            if life.request.kind is Kind.PREFILL:
                life.held = True
            else:
                self._forget(update.request_id, quarantined=life.reservation is not None)
        assert self.scheduler.next_deadline > self.now

    @rule()
    def unknown_ids(self) -> None:
        for late in (self.scheduler.abort, self.scheduler.release, self.scheduler.confirm_quiet):
            assert not late("nobody")
        assert not self.scheduler.mark_in_flight("nobody")
        assert not self.scheduler.deliver("nobody", [1])
        assert not self.scheduler.recompute("nobody", [1])

    @rule()
    def clear_cache(self) -> None:
        self.scheduler.clear_cache()

    # --- steps

    @rule()
    def step(self) -> None:
        self._step()

    @rule()
    def several_steps(self) -> None:
        for _ in range(4):
            self._step()

    @rule(data=st.data())
    def step_with_an_input_in_its_middle(self, data: st.DataObject) -> None:
        self._step(data)

    def _step(self, data: st.DataObject | None = None) -> bool:
        had_work = self.scheduler.has_work
        plan = self.scheduler.plan()
        if plan is None:
            return False
        assert had_work, "a step did something though has_work was false"
        assert plan.num_tokens <= self.limits.max_batch_tokens
        assert len(plan.rows) <= self.limits.max_running
        drawn = self.runner.execute(plan, lambda: self._take_written(plan)) if plan.rows else []
        if data is not None and self.lives:
            request_id = data.draw(st.sampled_from(sorted(self.lives)))
            life = self.lives[request_id]
            if life.in_flight:
                self._deliver(life, corrupt=False)
            elif life.request.kind is Kind.PREFILL and not life.held:
                self._hold(life)
            else:
                self._abort(request_id)
        self._take_in(self.scheduler.commit(plan, drawn))
        return True

    def _take_written(self, plan: Plan) -> None:
        """Every other step tells what is ready before it draws."""
        self.num_steps += 1
        if self.num_steps % 2:
            for ready in self.scheduler.written(plan):
                assert ready.blocks
                self._take_ready(ready, early=True)

    def _take_in(self, outcome: StepOutcome) -> None:
        for update in outcome.updates:
            self._take_update(update)
        for reservation in outcome.reservations:
            self._take_reservation(reservation)
        for ready in outcome.ready:
            self._take_ready(ready)
        for event in outcome.cache_events:
            assert not self.stored & set(event.stored)
            assert set(event.removed) <= self.stored
            self.stored = set() if event.cleared else (self.stored | set(event.stored)) - set(event.removed)
        for request_id in [request_id for request_id, life in self.lives.items() if life.over]:
            del self.lives[request_id]

    def _take_update(self, update: Update) -> None:
        life = self.lives[update.request_id]  # an update of an aborted request is a KeyError
        assert not life.held
        assert update.position == len(life.outputs[update.choice])
        assert len(update.token_ids) <= 1 + self.limits.speculative_tokens
        for token in update.token_ids:
            life.take(update.choice, token)
        assert update.finish_reason == life.reasons[update.choice]
        reported = [each.token_id for each in update.logprobs or []]
        assert reported == ([] if life.request.sampling.logprobs is None else update.token_ids)
        assert (update.stats is not None) == (not life.reported)
        if update.stats is not None:
            stats, length = update.stats, len(life.request.prompt)
            assert stats.prompt_cached + stats.prompt_computed + stats.prompt_transferred >= length
            life.reported = True

    def _take_reservation(self, reservation: Reservation) -> None:
        life = self.lives[reservation.request_id]  # one for a request aborted meanwhile is a KeyError
        num_blocks = -(-len(life.request.prompt) // BLOCK_SIZE)
        assert len(reservation.slots) == num_blocks - reservation.first_block > 0
        life.reservation = reservation

    def _take_ready(self, ready: ReadyBlocks, *, early: bool = False) -> None:
        life = self.lives[ready.request_id]
        assert not life.held
        assert ready.first_index == life.request.first_block + len(life.announced)
        life.announced += ready.blocks
        life.held = ready.last
        num_blocks = -(-len(life.request.prompt) // BLOCK_SIZE)
        whole = life.request.first_block + len(life.announced) == num_blocks
        assert ready.last == whole or (early and not ready.last)
        if ready.last:
            assert ready.first_tokens == life.first_tokens
            assert ready.finished == (None not in life.reasons)

    # --- what always holds

    @invariant()
    def books_add_up(self) -> None:
        if hasattr(self, "scheduler") and self.scheduler._step is None:
            self.scheduler.check()
            for request_id in self.lives:
                assert request_id in self.scheduler

    @invariant()
    def announced_blocks_keep_their_content(self) -> None:
        for life in self.lives.values():
            cells = cells_of(life.request.prompt)[life.request.first_block * BLOCK_SIZE :]
            num_cells = min(len(cells), len(life.announced) * BLOCK_SIZE)
            assert self.runner.read(life.announced, num_cells) == cells[:num_cells]

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(3_000):
            self.books_add_up()
            self.announced_blocks_keep_their_content()
            if not self._step() and not self.scheduler.has_work and not self._let_the_world_move():
                break
        assert not self.lives, "a request never ended"
        stats = self.scheduler.stats()
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total
        assert stats.num_running == stats.num_waiting == stats.waiting_prefill_tokens == 0

    def _let_the_world_move(self) -> bool:
        for request_id in list(self.quarantined):
            self._confirm_quiet(request_id)
            return True
        for life in list(self.lives.values()):
            if life.held:
                self._release(life)
                return True
            if life.reservation:
                life.in_flight = life.in_flight or self.scheduler.mark_in_flight(life.request.request_id)
                self._deliver(life, corrupt=False)
                return True
        return False

    # --- helpers

    def _pick(self, data: st.DataObject, wanted: object) -> Life:
        assert callable(wanted)
        return self.lives[data.draw(st.sampled_from([key for key, life in self.lives.items() if wanted(life)]))]

    def _abort(self, request_id: str) -> None:
        assert self.scheduler.abort(request_id)
        self._forget(request_id, quarantined=self.lives[request_id].in_flight)

    def _forget(self, request_id: str, quarantined: bool) -> None:
        assert not self.scheduler.abort(request_id)
        life = self.lives.pop(request_id)
        if quarantined:
            self.quarantined[request_id] = life.slots

    def _deliver(self, life: Life, corrupt: bool) -> None:
        request_id = life.request.request_id
        assert life.reservation is not None
        first_tokens = life.first_tokens
        if corrupt:
            self.runner.garbage(life.slots)
            assert self.scheduler.recompute(request_id, first_tokens)
        else:
            self.runner.fill(life.slots, life.reservation.first_block, life.request.prompt)
            assert self.scheduler.deliver(request_id, first_tokens)
        assert not self.scheduler.deliver(request_id, first_tokens)
        life.reservation, life.in_flight = None, False
        for choice, token in enumerate(first_tokens):
            life.take(choice, token)
        if life.over:
            assert request_id not in self.scheduler
            del self.lives[request_id]

    def _hold(self, life: Life) -> None:
        assert self.scheduler.hold(life.request.request_id)
        assert not self.scheduler.hold(life.request.request_id)
        life.held = True

    def _release(self, life: Life) -> None:
        request_id = life.request.request_id
        assert self.scheduler.release(request_id)
        assert not self.scheduler.release(request_id)
        del self.lives[request_id]

    def _confirm_quiet(self, request_id: str) -> None:
        del self.quarantined[request_id]
        assert self.scheduler.confirm_quiet(request_id)
        assert not self.scheduler.confirm_quiet(request_id)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
