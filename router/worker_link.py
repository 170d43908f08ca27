"""The router's connection to one worker: its calls, and the one frame stream that brings all its tokens here.

When the stream breaks, every request with a leg on that worker ends at once with a definite error; the link then tries
again for as long as membership knows the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from diptych import rpc
from diptych.errors import DiptychError, Draining, InternalError, LegFailed
from diptych.messages import (
    LEG_OVER,
    Abort,
    Reserve,
    Start,
    Subscribe,
    Ticket,
    Update,
    WorkerRecord,
    WorkerState,
    WorkerStats,
)
from diptych.telemetry import Logger
from diptych.tls import ClusterTls
from router.mailbox import Mailbox

ABORT_TIMEOUT_S = 2.0
ABORT_ATTEMPTS = 3  # after that the worker's own deadline releases the request
RECONNECT_S = 0.2
RETRY_AFTER_S = 1.0


class WorkerLink:
    """Made when membership first shows a worker; closed when it goes.

    Attributes: on_report: called when the worker has said how it is.
    """

    on_report: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        record: WorkerRecord,
        router_id: str,
        silence_s: float,
        on_change: Callable[[], None],
        log: Logger,
        tls: ClusterTls | None = None,
    ) -> None:
        """
        Args:
            silence_s: without a frame, after which the worker counts as stopped, stuck or cut off.
        """
        self.record = record
        self.stats = WorkerStats()
        self.connected = False
        self._router_id = router_id
        self._silence_s = silence_s
        self._on_change = on_change
        self._log = log
        self._stub = rpc.WorkerStub(record.address, tls)
        self._mailboxes: dict[str, Mailbox] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._reader = asyncio.create_task(self._read_frames(), name=f"frames {record.worker_id}")

    def join(self, request_id: str, mailbox: Mailbox) -> None:
        """Deliver this request's updates to `mailbox` from now on."""
        self._mailboxes[request_id] = mailbox

    def leave(self, request_id: str, *, abort: bool) -> None:
        """Stop delivering; with `abort`, also tell the worker (in the background, idempotent).

        A worker whose link closes needs no word: it ends what it holds for a router whose frame stream has ended.
        """
        if self._mailboxes.pop(request_id, None) is not None and abort and not self._closing:
            task = asyncio.create_task(self._abort(request_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def reserve(self, request: Reserve, timeout_s: float) -> Ticket:
        return await self._stub.call(rpc.RESERVE, request, timeout_s)

    async def start(self, request: Start, timeout_s: float) -> None:
        await self._stub.call(rpc.START, request, timeout_s)

    async def close(self, error: DiptychError) -> None:
        self._closing = True
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._lost(error)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stub.close()

    @property
    def num_open(self) -> int:
        return len(self._mailboxes)

    @property
    def num_tasks(self) -> int:
        return len(self._tasks)

    async def _read_frames(self) -> None:
        while True:
            error: DiptychError
            try:
                await self._read_until_broken()
                error = self._goodbye()
            except DiptychError as broken:
                error = broken
            except TimeoutError:
                error = LegFailed(f"{self.record.worker_id} has been silent for {self._silence_s:g} s")
            except Exception as bug:
                self._log.error("frame_reader_failed", worker=self.record.worker_id, exc_info=bug)
                error = InternalError("the router failed on a worker's frames; its log has the place")
            self._lost(error)
            await asyncio.sleep(RECONNECT_S)

    async def _read_until_broken(self) -> None:
        expected = 0
        frames = self._stub.stream(rpc.FRAMES, Subscribe(self._router_id))
        async with contextlib.aclosing(frames):
            while True:
                async with asyncio.timeout(self._silence_s):
                    frame = await anext(frames, None)
                if frame is None:
                    return
                if frame.sequence != expected or frame.worker_id != self.record.worker_id:
                    raise LegFailed(f"{self.record.worker_id} lost a frame; its streams cannot be trusted")
                expected += 1
                self.stats = frame.stats or self.stats
                for update in frame.updates:
                    self._deliver(update)
                if not self.connected:
                    self.connected = True
                    self._on_change()
                if frame.stats is not None:
                    self.on_report()

    def _deliver(self, update: Update) -> None:
        if update.choice == LEG_OVER:  # from here on this worker's death does not matter to the request
            self._mailboxes.pop(update.request_id, None)
        elif (mailbox := self._mailboxes.get(update.request_id)) is not None:
            mailbox.put(update)

    def _goodbye(self) -> DiptychError:
        """What it means when the worker ends its stream in good order."""
        worker = self.record.worker_id
        if self.record.state is WorkerState.DRAINING:
            return Draining(f"{worker} has left; retry", retry_after_s=RETRY_AFTER_S)
        return LegFailed(f"{worker} closed its stream")

    def _lost(self, error: DiptychError) -> None:
        if self.connected:
            self._log.warning("worker_lost", worker=self.record.worker_id, reason=error.message, requests=self.num_open)
        self.connected = False
        lost = error if isinstance(error, Draining) else LegFailed(f"a worker was lost: {error.message}")
        for mailbox in self._mailboxes.values():
            mailbox.fail(lost)
        self._on_change()

    async def _abort(self, request_id: str) -> None:
        for attempt in range(ABORT_ATTEMPTS):
            try:
                await self._stub.call(rpc.ABORT, Abort(request_id), ABORT_TIMEOUT_S)
                return
            except DiptychError as error:
                self._log.info("abort_failed", worker=self.record.worker_id, attempt=attempt, reason=error.code)
                await asyncio.sleep(RECONNECT_S)
