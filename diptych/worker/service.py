"""What prefill and decode workers answer in the same way; the roles add what differs.

Runs on the event loop. The engine and the transfer thread report here; nothing here computes or blocks.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from math import inf
from typing import Any

import msgspec
from opentelemetry.trace import Tracer

from diptych import messages as m
from diptych.config import WorkerConfig
from diptych.engine.interface import EngineRequest, Kind, ReadyBlocks, Reservation, StepOutcome
from diptych.errors import BadRequest, DiptychError, Draining, from_wire
from diptych.spans import Attributes, record_span
from diptych.telemetry import Logger
from diptych.worker.engine_thread import EngineThread
from diptych.worker.outbox import Outbox
from diptych.worker.peers import Peers
from diptych.worker.requests import Entry, OpenRequests
from kv_transfer.hashing import hash_key
from kv_transfer.outcome import Arrival, Missed
from kv_transfer.publisher import IndexPublisher
from kv_transfer.transfer_thread import TransferThread

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is made of."""

    config: WorkerConfig
    worker_id: str
    address: str  # of its gRPC server
    fingerprint: str
    engine: EngineThread
    transfers: TransferThread
    peers: Peers
    publisher: IndexPublisher
    is_dead: Callable[[str], Awaitable[bool]]  # whether a peer's incarnation is proven to be gone
    tracer: Tracer
    log: Logger


class BaseService(ABC):
    """Implements `rpc.WorkerService` except for what the roles do differently."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._engine = parts.engine
        self._transfers = parts.transfers
        self._requests = OpenRequests(self._end_with)
        self._tasks: set[asyncio.Task[None]] = set()  # that `drain` waits for
        self._watches: set[asyncio.Task[None]] = set()  # that only matter while this process lives
        self.draining = False
        self.worn_out = asyncio.Event()  # it can do no more good: drain, end, and let another take its place
        self.outbox = Outbox(parts.worker_id, self.stats, parts.config.stats_interval_ms, self._router_lost)

    # What routers and peers ask for.

    async def reserve(self, request: m.Reserve) -> m.Ticket:
        raise BadRequest(f"{self._parts.worker_id} is a {self._parts.config.role} worker; it reserves nothing")

    @abstractmethod
    async def start(self, request: m.Start) -> m.Started: ...

    async def revoke(self, request: m.Revoke) -> m.Revoked:
        raise BadRequest(f"{self._parts.worker_id} is a {self._parts.config.role} worker; it pushes nothing")

    async def abort(self, request: m.Abort) -> m.Aborted:
        entry = self._requests.close(request.request_id)
        if entry is not None:
            self._release(entry)
        return m.Aborted(known=entry is not None)

    async def meet(self, request: m.PeerHello) -> m.PeerHello:
        return await self._parts.peers.answer(request)

    def frames(self, request: m.Subscribe) -> AsyncIterator[m.Frame]:
        return self.outbox.frames(request.router_id)

    # What the engine and the transfer thread report.

    def on_arrival(self, arrival: Arrival) -> None:
        raise AssertionError(f"{self._parts.config.role} workers receive nothing")

    def on_missed(self, missed: Missed) -> None:
        raise AssertionError(f"{self._parts.config.role} workers receive nothing")

    def on_outcome(self, outcome: StepOutcome) -> None:
        """Act on one step: reservations and finished blocks first, so that nothing waits for the tokens' sake."""
        for reservation in outcome.reservations:
            self._on_reservation(reservation)
        for ready in outcome.ready:
            self._on_ready(ready)
        by_router: dict[str, list[m.Update]] = defaultdict(list)
        for update in outcome.updates:
            if (entry := self._requests.get(update.request_id)) is None:  # aborted meanwhile
                continue
            if update.error is not None:
                self._end_with(entry, from_wire(update.error))
            else:
                by_router[entry.router_id].append(self._dress(entry, update))
                if update.stats is not None and update.position == 0:
                    self._end_phase(entry, "prefill", _prompt_attributes(update.stats))
                entry.open_choices -= update.finish_reason is not None
                if not entry.open_choices:
                    self._on_finished(entry)
        for router_id, updates in by_router.items():
            self.outbox.send(router_id, updates)
        for event in outcome.cache_events:
            self._parts.publisher.publish(event)

    @abstractmethod
    def _release(self, entry: Entry) -> None:
        """Give back everything an entry holds. It is already closed."""

    @abstractmethod
    def _on_finished(self, entry: Entry) -> None:
        """The engine has drawn the last token of this request that it will draw here."""

    def _on_reservation(self, reservation: Reservation) -> None:
        raise AssertionError(f"{self._parts.config.role} workers reserve nothing")

    def _on_ready(self, ready: ReadyBlocks) -> None:
        raise AssertionError(f"{self._parts.config.role} workers push nothing")

    def _dress(self, entry: Entry, update: m.Update) -> m.Update:
        """Add to an update what the engine cannot know."""
        return update

    # What the roles share.

    def _open(self, submission: m.Submission) -> Entry:
        """
        Raises:
            Draining: it takes nothing new.
            LegFailed: a used id, or nobody to send the tokens to.
        """
        if self.draining:
            raise Draining(f"{self._parts.worker_id} is draining; use another worker", retry_after_s=RETRY_AFTER_S)
        self.outbox.require(submission.router_id)
        return self._requests.open(submission)

    def _engine_request(self, entry: Entry, kind: Kind, first_block: int) -> EngineRequest:
        """Whether the ticket of a RECEIVE request has left only its service knows: it alone keeps that deadline."""
        submission = entry.submission
        return EngineRequest(
            request_id=submission.request_id,
            kind=kind,
            prompt=tuple(submission.prompt),
            sampling=submission.sampling,
            hash_key=hash_key(self._parts.fingerprint, submission.cache_scope),
            first_block=first_block,
            priority=submission.priority,
            deadline=inf if kind is Kind.RECEIVE else self._engine.now() + entry.remaining_s,
        )

    async def _add(self, entry: Entry, kind: Kind, first_block: int = 0) -> None:
        """Hand a request to the engine; if the engine refuses it, nothing is left of it.

        Raises:
            PromptTooLong: it can never fit here.
        """
        try:
            request, since = self._engine_request(entry, kind, first_block), self._engine.now()
            await self._engine.call(lambda engine: engine.add(request, since))
        except BaseException:
            if self._requests.close(entry.request_id) is not None:
                self._release(entry)
            raise

    def _end_with(self, entry: Entry, error: DiptychError) -> None:
        """End an open request with an error: the router is told, everything is given back."""
        if self._requests.close(entry.request_id) is None:
            return
        entry.error = error
        self._parts.log.warning("request_failed", request=entry.request_id, code=error.code, reason=error.message)
        self.outbox.send(entry.router_id, [m.Update(entry.request_id, 0, 0, [], error=error.to_wire())])
        self._release(entry)

    def _router_lost(self, router_id: str) -> None:
        for entry in self._requests.of_router(router_id):
            self._requests.close(entry.request_id)
            self._release(entry)

    def _end_phase(self, entry: Entry, name: str, attributes: Attributes) -> None:
        """Record what this worker did for the request up to now as a span; the next phase begins."""
        now = time.time()
        record_span(self._parts.tracer, name, entry.submission.traceparent, entry.phase_began, now, attributes)
        entry.phase_began = now

    def _spawn(self, work: Coroutine[Any, Any, None], *, drains: bool = True) -> None:
        """Run something in the background; `drain` waits for it unless told otherwise, `close` ends it."""
        tasks = self._tasks if drains else self._watches
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def stats(self) -> m.WorkerStats:
        """The engine's view of itself, with the transfers'."""
        counters = self._transfers.counters
        names = (name for name in m.WorkerStats.__struct_fields__ if name.startswith(("transfer", "exposed")))
        links = {
            peer_id: m.LinkStats(link.bytes_per_s, link.latency_ms) for peer_id, link in self._transfers.links.items()
        }
        counted = {name: getattr(counters, name) for name in names}
        publisher = self._parts.publisher
        return msgspec.structs.replace(
            self._engine.stats,
            links=links,
            index_degraded=publisher.degraded,
            index_epochs_total=publisher.epoch,
            index_overflows_total=publisher.overflows_total,
            **counted,
        )

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish, then end the rest with an error."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._requests.wait_empty()
                while self._tasks:  # one may begin another
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            for entry in self._requests.all():
                self._end_with(entry, Draining("the worker is shutting down; retry", retry_after_s=RETRY_AFTER_S))
        self.outbox.close()

    async def close(self) -> None:
        """End what still runs in the background: the process is about to go, and everything it held with it."""
        tasks = self._tasks | self._watches
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _prompt_attributes(stats: m.LegStats) -> Attributes:
    return {
        "diptych.prompt_tokens.computed": stats.prompt_computed,
        "diptych.prompt_tokens.local_cache": stats.prompt_cached,
        "diptych.queue_ms": stats.queue_ms,
    }
