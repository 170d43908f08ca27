"""The queue as the router's coroutines see it: `admitted` returns when a request may be placed, or raises why not.

The shell around `admission`: gives it the time, hands its decisions to those that wait, and wakes it when there may be
room: a request has got its first token or ended, a worker has reported, the fleet has changed, a limit passes. Whoever
waits is woken by a decision and by nothing else; nobody looks again and again. Knows nothing about links, legs or text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from diptych.errors import DeadlineExceeded, DiptychError, NoCapacity
from router.admission.admission import Admission
from router.admission.ask import AdmissionLimits, Ask, Decision, Go, Reason, Refuse
from router.admission.line import Entry
from router.admission.metrics import AdmissionMetrics
from router.requests import TokenRequest

MIN_RETRY_AFTER_S = 0.1  # nothing is known better
NO_LIMIT = float("inf")


class Pass:
    """What a request that was let through holds; given back when it leaves `AdmissionDoor.admitted`."""

    def __init__(self, door: AdmissionDoor, entry: Entry | None, *, alone: bool = False) -> None:
        """
        Args:
            entry: None for one that asks nobody (a canary).
            alone: as `ask.Go` has it.
        """
        self.alone = alone
        self._door = door
        self._entry = entry

    def placed(self, decode_id: str) -> None:
        """An attempt is booked on its workers."""
        self.alone = False  # a further attempt goes wherever it can
        if self._entry is not None:
            self._door.placed(self._entry, decode_id)

    def prefilled(self) -> None:
        """Its first token is there. Idempotent."""
        if self._entry is not None:
            self._door.prefilled(self._entry)


class AdmissionDoor:
    """For one event loop."""

    def __init__(
        self,
        core: Admission,
        limits: AdmissionLimits,
        metrics: AdmissionMetrics,
        believed: Callable[[Sequence[bytes]], Mapping[str, int]],
    ) -> None:
        """
        Args:
            limits: the core's.
            believed: tokens of a prompt, given by its block hashes, that each worker is believed to hold.
        """
        self._believed = believed
        self._core = core
        self._limits = limits
        self._metrics = metrics
        self._waiting: dict[Entry, asyncio.Future[Go]] = {}
        self._waking: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        metrics.watch(core.queued_priorities)

    @asynccontextmanager
    async def admitted(self, request: TokenRequest, hashes: Sequence[bytes], deadline: float) -> AsyncIterator[Pass]:
        """Wait for this request's turn; its place is given back when the block is left, however it is left.

        A canary goes at once: it has to prove that workers answer, not that the queue is short.

        Args:
            hashes: of the prompt's full blocks.
            deadline: event-loop time.

        Raises:
            NoCapacity: it is refused; `retry_after_s` is when it would not be.
            DeadlineExceeded: its deadline passed while it waited.
        """
        if request.canary:
            yield Pass(self, None)
            return
        began = _now_ms()
        ask = Ask(
            num_prompt_tokens=len(request.prompt),
            held=self._believed(hashes),
            deadline_ms=deadline * 1e3,
            ttft_limit_ms=request.ttft_limit_ms or NO_LIMIT,
            priority=request.priority,
            tenant=request.tenant,
        )
        entry, decisions = self._core.arrive(ask, began)
        turn = self._waiting[entry] = asyncio.get_running_loop().create_future()
        try:
            self._carry_out(decisions)
            go = await turn
            self._metrics.admitted((_now_ms() - began) / 1e3)
            yield Pass(self, entry, alone=go.alone)
        finally:
            self._waiting.pop(entry, None)
            self._core.leave(entry, _now_ms())
            self._set_timer()
            self.wake()

    def placed(self, entry: Entry, decode_id: str) -> None:
        self._core.placed(entry, decode_id, _now_ms())
        self.wake()

    def prefilled(self, entry: Entry) -> None:
        if self._core.prefilled(entry, _now_ms()):
            self.wake()

    def wake(self) -> None:
        """There may be room. Whatever else happens in this turn of the loop is taken together."""
        if self._waking is None and self._core.num_queued:
            self._waking = asyncio.get_running_loop().call_soon(self._wake_up)

    @property
    def num_queued(self) -> int:
        return self._core.num_queued

    @property
    def num_queued_tokens(self) -> int:
        """Of prompts, to compute."""
        return self._core.num_queued_tokens

    def retry_after_s(self) -> float:
        """When the queue will have drained, as things are."""
        return max(MIN_RETRY_AFTER_S, self._core.drained_in_ms(_now_ms()) / 1e3)

    def _wake_up(self) -> None:
        self._waking = None
        self._carry_out(self._core.wake(_now_ms()))

    def _limit_passes(self) -> None:
        self._timer = None
        self._carry_out(self._core.wake(_now_ms()))

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            turn = self._waiting.get(decision.entry)
            if isinstance(decision, Refuse):
                self._metrics.refused(decision.reason)
            if turn is None or turn.done():  # it is leaving by itself
                continue
            if isinstance(decision, Go):
                turn.set_result(decision)
            else:
                turn.set_exception(self._error(decision))
        self._set_timer()

    def _set_timer(self) -> None:
        """To the first limit that passes."""
        due_ms = self._core.next_due_ms
        if self._timer is not None and (due_ms is None or self._timer.when() != due_ms / 1e3):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due_ms is not None:
            self._timer = asyncio.get_running_loop().call_at(due_ms / 1e3, self._limit_passes)

    def _error(self, refused: Refuse) -> DiptychError:
        retry_after_s = max(MIN_RETRY_AFTER_S, refused.retry_after_ms / 1e3)
        if refused.late and refused.reason is Reason.DEADLINE:
            return DeadlineExceeded("the request's deadline passed while it waited; retry, or give it more time")
        return NoCapacity(f"{self._why(refused)}; retry in {retry_after_s:.1f} s{_OR}", retry_after_s=retry_after_s)

    def _why(self, refused: Refuse) -> str:
        ask, expected_s = refused.entry.ask, refused.expected_ms / 1e3
        if refused.reason is Reason.QUEUE_FULL:
            return f"{self._limits.max_queued} requests wait at this router already (max_queued)"
        if refused.reason is Reason.SHED:
            return f"a request of higher priority took its place in the queue of {self._limits.max_queued} (max_queued)"
        if refused.reason is Reason.DEADLINE:
            return f"its first token is expected in {expected_s:.1f} s, after its deadline (request_deadline_ms)"
        limit = f"its limit is {ask.ttft_limit_ms:.0f} ms (X-Diptych-TTFT-Limit-Ms, or ttft_limit_ms)"
        if refused.late:
            return f"no worker had room for its prompt in time: {limit}"
        return f"its first token is expected in {expected_s:.1f} s and {limit}"


_OR = ", or add workers"


def _now_ms() -> float:
    return asyncio.get_running_loop().time() * 1e3
