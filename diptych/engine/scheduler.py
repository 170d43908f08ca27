"""The pure heart of an engine: requests and events in, plans and outcomes out.

    add ─▶ plan ─▶ (a runner computes it) ─▶ commit ─▶ updates, reservations, ready blocks, cache events

    LOCAL     waits, computes its prompt, draws the first tokens, decodes
    PREFILL   waits, computes its prompt, draws the first tokens, is held until `release`
    RECEIVE   asks for blocks, is granted them by a plan, `mark_in_flight`, `deliver` (or `recompute`), decodes

Events may come at any time, also between `plan` and `commit`: blocks are handed out in `plan` only, so a step that is
being computed never sees its blocks given to another. One caller at a time.

Knows no clock, socket, thread, tensor or randomness: the same calls give the same results. Age is counted in steps;
what time it is, `expire` is told.
"""

from __future__ import annotations

from collections.abc import Sequence as ReadOnly
from math import inf

from diptych.engine.block_pool import BlockPool
from diptych.engine.block_tables import BlockTables
from diptych.engine.interface import Drawn, EngineRequest, Kind, Plan, ReadyBlocks, StepOutcome
from diptych.engine.invariants import check_books
from diptych.engine.limits import Limits
from diptych.engine.planner import Planner, Step
from diptych.engine.queues import Queues
from diptych.engine.requests import Requests
from diptych.engine.results import Results
from diptych.engine.sequence import Group, Stage
from diptych.engine.totals import Totals, worker_stats
from diptych.errors import BadRequest, DeadlineExceeded
from diptych.messages import Update, WorkerStats


class Scheduler:
    """Schedules one engine. An input about a request that is unknown, or not at that point, answers False: it is late.

    Attributes:
        admitted: the requests that the latest plan gave their blocks
        next_deadline: no request's deadline is earlier than this
    """

    def __init__(self, limits: Limits, num_blocks: int) -> None:
        self.limits = limits
        self.pool = BlockPool(num_blocks)
        self.admitted: list[str] = []
        self.next_deadline = inf
        self._queues = Queues()
        self._tables = BlockTables(self.pool, limits)
        self._requests = Requests(self._queues, self._tables)
        self._totals = Totals()
        self._planner = Planner(self._queues, self._tables, limits)
        self._results = Results(self._requests, self._queues, self._tables, limits, self._totals)
        self._quarantine: dict[str, list[int]] = {}  # request id to blocks that a peer may still write
        self._step: Step | None = None  # planned, not committed
        self._stalled = False  # nothing can move until the next input

    # --- inputs ---------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            PromptTooLong: it could never finish here.
            BadRequest: the prompt is empty, or a request of this id is here already.
        """
        if not request.prompt:
            raise BadRequest("the prompt has no tokens; give at least one", param="prompt")
        if request.request_id in self or request.request_id in self._quarantine:
            raise BadRequest(f"request {request.request_id} is here already; use a new id for each attempt")
        self.limits.check_fits(request, self.pool.num_blocks)
        self._requests.create(request, self._planner.tick)
        self.next_deadline = min(self.next_deadline, request.deadline)
        self._stalled = False

    def mark_in_flight(self, request_id: str) -> bool:
        """The ticket of a reservation has left: a peer may write from now on."""
        group = self._requests.find(request_id, Stage.RESERVED)
        if group is None:
            return False
        self._tables.mark_in_flight(group.root)
        group.stage = Stage.IN_FLIGHT
        return True

    def deliver(self, request_id: str, first_tokens: ReadOnly[int]) -> bool:
        """The KV of a reservation has arrived and was verified: go on after the first tokens, one for each choice.

        A choice that its first token ended already needs nothing more, not even an update.

        Raises:
            ValueError: the number of first tokens is not that of the choices.
        """
        group = self._arrived(request_id, first_tokens)
        if group is None:
            return False
        self._tables.index_computed(group.root)
        group.prompt_transferred = len(group.request.prompt) - (group.prompt_cached or 0)
        self._totals.prompt_cached += group.prompt_cached or 0
        self._totals.prompt_transferred += group.prompt_transferred
        self._queues.parked.add(group.root)
        self._requests.start_choices(group.root, first_tokens)
        return True

    def recompute(self, request_id: str, first_tokens: ReadOnly[int]) -> bool:
        """What arrived is corrupt, but all writes are over: compute the prompt here and go on after the first tokens.

        Raises:
            ValueError: the number of first tokens is not that of the choices.
        """
        group = self._arrived(request_id, first_tokens)
        if group is None:
            return False
        self._tables.release(group.root)  # not indexed, so what arrived is forgotten
        self._requests.restart(group, first_tokens)
        return True

    def release(self, request_id: str) -> bool:
        """The KV of a held PREFILL request was pushed or is not wanted: nothing reads its blocks any more."""
        return self._requests.find(request_id, Stage.HELD) is not None and self.abort(request_id)

    def hold(self, request_id: str) -> bool:
        """Compute and tell nothing more for a PREFILL request. Its blocks stay until `release`."""
        group = self._requests.find(request_id, Stage.ACTIVE)
        if group is None or group.request.kind is not Kind.PREFILL:
            return False
        self._queues.remove(group.root)
        group.stage = Stage.HELD
        self._stalled = False
        return True

    def abort(self, request_id: str) -> bool:
        """End a request wherever it is.

        Blocks of a RECEIVE request that a peer may be writing stay quarantined until `confirm_quiet`. For a PREFILL
        request no push that reads its blocks may be under way.
        """
        group = self._requests.groups.get(request_id)
        if group is None:
            return False
        if group.stage in (Stage.RESERVED, Stage.IN_FLIGHT):
            if blocks := self._tables.release_reservation(group.root, in_flight=group.stage is Stage.IN_FLIGHT):
                self._quarantine[request_id] = blocks
            group.stage = Stage.ACTIVE
        for sequence in list(group.sequences):
            self._requests.end(sequence)
        self._stalled = False
        return True

    def expire(self, now: float) -> list[Update]:
        """End the requests whose deadline is `now` or earlier; for each an update that carries the error.

        Blocks that were reserved stay quarantined until `confirm_quiet`, even if the ticket has not left: it may be on
        its way. A PREFILL request is put on hold: its blocks stay until `release`, for a push may be reading them. If
        it is held already its deadline is no more the engine's business.
        """
        if now < self.next_deadline:
            return []
        updates = []
        for group in [each for each in self._requests.groups.values() if each.request.deadline <= now]:
            if group.stage is Stage.HELD:
                continue
            if not self.hold(group.request_id):
                self.mark_in_flight(group.request_id)
                self.abort(group.request_id)
            error = DeadlineExceeded("the request's deadline passed in the engine")
            updates.append(Update(group.request_id, 0, 0, [], error=error.to_wire()))
        self._totals.expired += len(updates)
        self.next_deadline = min((each.request.deadline for each in self._unfinished()), default=inf)
        return updates

    def confirm_quiet(self, request_id: str) -> bool:
        """No write of an aborted transfer is in flight and none will follow: its blocks are free."""
        blocks = self._quarantine.pop(request_id, None)
        if blocks is None:
            return False
        self.pool.confirm_quiet(blocks)
        self._stalled = False
        return True

    def clear_cache(self) -> None:
        """Forget every reusable prefix; requests that are here are not touched."""
        self.pool.clear_cache()
        self._stalled = False

    # --- steps ----------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """A step may change something. False also while everybody waits for an input, a release for example."""
        return self.pool.has_events or (bool(self._queues) and not self._stalled)

    def plan(self) -> Plan | None:
        """What to compute next; without rows if there is only news to tell, None if there is nothing at all.

        Raises:
            RuntimeError: the previous plan was not committed.
        """
        if self._step is not None:
            raise RuntimeError("the previous plan was not committed; its copies would be lost")
        step = self._planner.plan()
        self.admitted = [sequence.group.request_id for sequence in step.admitted]
        self._totals.prompt_queried += step.num_queried
        self._totals.prompt_cached += step.num_cached
        self._totals.preemptions += step.num_preempted
        if step.plan.rows:
            self._totals.steps, self._totals.step_tokens = self._planner.tick, step.num_tokens
        if not (step.plan.rows or step.reservations or self.pool.has_events):
            self._stalled = step.num_preempted == 0
            return None
        self._step = step
        return step.plan

    def written(self, plan: Plan) -> list[ReadyBlocks]:
        """The KV of this plan is in memory, what it draws is not known yet: blocks that may be pushed already.

        They are not announced again by `commit`. Optional, at most once, before `commit`.
        """
        step = self._step
        if step is None or step.plan is not plan:
            raise RuntimeError("this is not the plan made last")
        ready = (self._results.written(*each) for each in zip(step.sequences, plan.rows, strict=True))
        return [each for each in ready if each is not None]

    def commit(self, plan: Plan, drawn: ReadOnly[ReadOnly[Drawn]]) -> StepOutcome:
        """Take in what each row of the plan drew. Follows every plan that was not None.

        Raises:
            RuntimeError: this is not the plan made last.
            ValueError: `drawn` has not one entry for each row.
        """
        step, self._step = self._step, None
        if step is None or step.plan is not plan:
            raise RuntimeError("this is not the plan made last")
        outcome = StepOutcome(reservations=[each for each in step.reservations if self._is_reserved(each.request_id)])
        for sequence, row, draws in zip(step.sequences, plan.rows, drawn, strict=True):
            self._results.take_in(sequence, row, draws, outcome)
        outcome.cache_events = self.pool.take_events()
        return outcome

    # --- look-ups and numbers -------------------------------------------------------------------------------------

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests.groups

    def partial_block(self, ready: ReadyBlocks) -> tuple[int, int] | None:
        """The block among these that the prompt's end fills in part, and how many tokens it holds."""
        whole_blocks, num_tokens = divmod(
            len(self._requests.groups[ready.request_id].request.prompt), self.limits.block_size
        )
        index = whole_blocks - ready.first_index
        return (ready.blocks[index], num_tokens) if num_tokens and 0 <= index < len(ready.blocks) else None

    def stats(self) -> WorkerStats:
        """Gauges and totals, as far as they are the scheduler's: no rates, no transfers."""
        return worker_stats(self.pool, self._queues, self._requests.groups.values(), self._totals, self.limits)

    def check(self) -> None:
        """Every invariant of the book-keeping, by recounting. For tests and idle moments."""
        check_books(self.pool, self._queues, self._requests.groups, self._quarantine, self.limits)

    def _unfinished(self) -> list[Group]:
        """Requests the engine still has something to do for."""
        return [group for group in self._requests.groups.values() if group.stage is not Stage.HELD]

    def _is_reserved(self, request_id: str) -> bool:
        """Not so if it was aborted while the step ran: its slots must not go out."""
        return self._requests.find(request_id, Stage.RESERVED) is not None

    def _arrived(self, request_id: str, first_tokens: ReadOnly[int]) -> Group | None:
        """All writes of a reservation are over: its blocks are the request's own. None if it is not expected."""
        group = self._requests.find(request_id, Stage.RESERVED, Stage.IN_FLIGHT)
        if group is None:
            return None
        if len(first_tokens) != group.request.sampling.n:
            raise ValueError(f"{len(first_tokens)} first tokens for {group.request.sampling.n} choices")
        self.mark_in_flight(request_id)  # if the delivery was quicker than the caller's own book-keeping
        self._tables.delivered(group.root)
        group.stage = Stage.ACTIVE
        self._stalled = False
        return group
