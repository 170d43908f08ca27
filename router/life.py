"""The life of a request, in one function: `Router.generate` (the page of words is docs/life-of-a-request.md).

Works on token ids; knows nothing about text, HTTP or protobuf. Whatever ends a request (finish, stop, cancel,
disconnect, error, death of a worker, deadline) leaves through the same `finally`, which gives everything back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import msgspec
from opentelemetry.trace import Tracer

from diptych.errors import Cancelled, DeadlineExceeded, DiptychError, Draining, InternalError, LegFailed, NoCapacity
from diptych.messages import Reserve, Start, Submission, Ticket, Update, WorkerRecord
from diptych.spans import end_span, start_span, traceparent_of
from diptych.telemetry import Logger
from kv_transfer.hashing import block_hashes, hash_key
from router.admission.door import AdmissionDoor
from router.attempts import Attempts, Given
from router.fleet import Fleet
from router.legs import Legs, open_legs
from router.limits import Limits
from router.mailbox import Mailbox
from router.placer import Booked, Placer
from router.requests import Report, TokenRequest
from router.suspects import Suspects


class Router:
    """Places requests and runs their lives. Implements `requests.Core`."""

    def __init__(
        self,
        router_id: str,
        limits: Limits,
        fleet: Fleet,
        admission: AdmissionDoor,
        placer: Placer,
        suspects: Suspects,
        tracer: Tracer,
        log: Logger,
        on_end: Callable[[TokenRequest, DiptychError | None], None],
    ) -> None:
        self._router_id = router_id
        self._limits = limits
        self._fleet = fleet
        self._admission = admission
        self._placer = placer
        self._suspects = suspects
        self._tracer = tracer
        self._log = log
        self._on_end = on_end
        self.num_running = 0

    async def generate(self, request: TokenRequest, report: Report) -> AsyncGenerator[Update, None]:
        """Run one request from placement to its last token (see `requests.Core.generate`)."""
        deadline = asyncio.get_running_loop().time() + request.deadline_ms / 1e3
        given, attempts = Given(request.sampling.n), Attempts(self._limits.max_attempts)
        with self._ending(request, report) as traceparent:
            hashes = self._hash(request)
            async with self._admission.admitted(request, hashes, deadline) as turn:
                while not given.done:
                    booked = await self._placer.place(request, hashes, attempts, report, alone=turn.alone)
                    legs = self._legs(request, booked)
                    with self._retrying(attempts, legs), open_legs(legs, deadline):
                        turn.placed(legs.pair[1])
                        submission = self._submission(legs, request, deadline, traceparent)
                        await self._begin(legs, submission, deadline, report)
                        while not given.done:
                            update = await legs.mailbox.next(deadline)
                            legs.observe(update)
                            turn.prefilled()
                            if (news := given.take(update)) is not None:
                                _note(report, news)
                                yield news

    @contextmanager
    def _ending(self, request: TokenRequest, report: Report) -> Iterator[str]:
        """See to it that the request ends exactly once: counted, traced, with its error."""
        span = start_span(self._tracer, "router", request.traceparent)
        self.num_running += 1
        error: BaseException | None = None
        report.marks["arrived"] = time.monotonic()
        try:
            yield traceparent_of(span)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.num_running -= 1
            report.marks["ended"] = time.monotonic()
            end_span(span, report.attributes(len(request.prompt)), error)
            self._placer.ended(request, report, _as_ours(error))
            self._on_end(request, _as_ours(error))

    def _hash(self, request: TokenRequest) -> list[bytes]:
        key = hash_key(self._limits.fingerprint, request.cache_scope)
        return block_hashes(key, request.prompt, self._limits.block_size)

    @contextmanager
    def _retrying(self, attempts: Attempts, legs: Legs) -> Iterator[None]:
        """Let a failure pass that another attempt may mend; raise any other."""
        try:
            yield
        except (LegFailed, Draining) as error:
            attempts.failed(error, legs.pair, legs.refused_by, legs.lost)
            if legs.prefill and not legs.lost and isinstance(error, LegFailed):
                self._suspects.suspect(legs.pair, time.monotonic())
            self._log.info(
                "attempt_failed", attempt=legs.request_id, code=error.code, pair=legs.pair, lost=sorted(legs.lost)
            )
        else:
            self._suspects.trust(legs.pair)

    def _legs(self, request: TokenRequest, booked: Booked) -> Legs:
        """The two that were chosen; nobody has come between, so they are there."""
        placement = booked.placement
        prefill = self._fleet.link(placement.prefill_id) if placement.prefill_id else None
        decode = self._fleet.link(placement.decode_id)
        attempt_id = f"{request.request_id}:{uuid4().hex[:12]}"
        return Legs(attempt_id, decode, prefill, Mailbox(request.sampling.n), booked.booking)

    async def _begin(self, legs: Legs, submission: Submission, deadline: float, report: Report) -> None:
        """Hand the request to its workers: decode's blocks first, then prefill's work."""
        if legs.prefill is None:
            await legs.ask(legs.decode, legs.decode.start(Start(submission=submission), _left_s(deadline)))
            return
        ticket = await legs.ask(legs.decode, self._reserve(legs, legs.prefill.record, submission, report))
        start = Start(submission=_at(submission, deadline), ticket=ticket)
        await legs.ask(legs.prefill, legs.prefill.start(start, _left_s(deadline)))

    def _submission(self, legs: Legs, request: TokenRequest, deadline: float, traceparent: str) -> Submission:
        return Submission(
            request_id=legs.request_id,
            router_id=self._router_id,
            prompt=request.prompt,
            sampling=request.sampling,
            priority=request.priority,
            cache_scope=request.cache_scope,
            remaining_ms=_left_ms(deadline),
            traceparent=traceparent,
        )

    async def _reserve(self, legs: Legs, prefill: WorkerRecord, submission: Submission, report: Report) -> Ticket:
        """Hold decode's blocks before anything is computed: this is where back-pressure acts."""
        num_blocks = self._limits.num_blocks(len(submission.prompt))
        timeout_ms = min(self._limits.reserve_timeout_ms, submission.remaining_ms)
        request = Reserve(submission=submission, prefill_id=prefill.worker_id, prefill_address=prefill.address)
        try:
            ticket = await legs.decode.reserve(request, timeout_ms / 1e3)
        except DeadlineExceeded:
            if timeout_ms == submission.remaining_ms:
                raise
            raise NoCapacity(
                f"{legs.decode.record.worker_id} had no {num_blocks} free blocks within "
                f"{timeout_ms} ms (reserve_timeout_ms); retry later, or add decode workers",
                retry_after_s=self._admission.retry_after_s(),
            ) from None
        report.marks["reserved"] = time.monotonic()
        return ticket


def _left_s(deadline: float) -> float:
    """Seconds until `deadline` (event-loop time).

    Raises:
        DeadlineExceeded: it has passed.
    """
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise DeadlineExceeded("the request's deadline passed before a worker began; retry, or give it more time")
    return left


def _left_ms(deadline: float) -> int:
    return max(1, int(1e3 * _left_s(deadline)))


def _at(submission: Submission, deadline: float) -> Submission:
    """The same, with the time that is left by now."""
    return msgspec.structs.replace(submission, remaining_ms=_left_ms(deadline))


def _note(report: Report, update: Update) -> None:
    """Keep what the report needs from an update."""
    now = time.monotonic()
    if not report.num_tokens:
        report.marks["first_token"] = now
    report.num_tokens += len(update.token_ids)
    report.marks["last_token"] = now
    if update.stats is not None and update.position == 0:
        report.prefill = update.stats
    elif update.stats is not None:
        report.decode = update.stats


def _as_ours(error: BaseException | None) -> DiptychError | None:
    """What a request's end is called in metrics."""
    if error is None or isinstance(error, DiptychError):
        return error
    if isinstance(error, GeneratorExit | asyncio.CancelledError):
        return Cancelled("the client went away")
    return InternalError(type(error).__name__)
