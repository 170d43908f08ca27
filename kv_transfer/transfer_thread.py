"""The thread that owns the transfer agent, as seen from an event loop.

A write over shared memory blocks whoever posts it, so NIXL runs here and never on an event loop. Calls are queued to
the thread; results come back with `call_soon_threadsafe`. The thread sleeps while nothing is in flight or expected and
polls twice a millisecond otherwise. What happens is decided by `transfer` and done by `pump`; this file only carries
calls.

Knows nothing about requests, engines or gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from diptych.errors import InternalError
from diptych.messages import PeerHello, Ticket
from kv_transfer.agent import TransferAgent, TransferError
from kv_transfer.checksum import Checks, Pool
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.layout import KVLayout, check_compatible, slow_path
from kv_transfer.link_probe import Link
from kv_transfer.outcome import Arrival, Counters, Missed, Pushed
from kv_transfer.pump import TransferPump

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class TransferThread:
    """Pushes and receives KV for one worker incarnation. Its methods belong to the event loop it is started on."""

    def __init__(
        self,
        worker_id: str,
        layout: KVLayout,
        pool: Pool | None,
        make_agent: Callable[[], TransferAgent],
        on_delivery: Callable[[Arrival], None],
        on_missed: Callable[[Missed], None] = lambda missed: None,
        checks: Checks = Checks(),  # noqa: B008 (frozen)
        transports: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            pool: the blocks of `layout`, uint8 [num_blocks, block_bytes]; None where the CPU cannot read them.
            make_agent: called on the thread.
            on_delivery: called on the loop, once for each transfer that was expected and not forgotten,
            on_missed: or this, where it will not be delivered.
            checks: the share of blocks that is checksummed when pushing and demanded when receiving.
            transports: of UCX, told to peers.
        """
        self.counters = Counters()
        self.ended = asyncio.Event()  # set when the thread is gone; a worker without it cannot go on
        self.error: Exception | None = None  # why it ended, if not by `stop`
        self.on_unanswered: Callable[[str], object] = lambda peer_id: None  # see `TransferPump`; called on the loop
        self._worker_id = worker_id
        self._layout = layout
        self._pool = pool
        self._checks = checks
        self._transports = transports
        self._make_agent = make_agent
        self._on_delivery = on_delivery
        self._on_missed = on_missed
        self._commands: queue.SimpleQueue[Callable[[TransferPump], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kv-transfer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: asyncio.Future[PeerHello] | None = None
        self._pending: set[asyncio.Future[Any]] = set()  # failed when the thread ends
        self._expected: set[str] = set()  # on the loop's side: `forget` takes effect at once
        self._peers: set[str] = set()
        self._hello: PeerHello | None = None
        self._pump: TransferPump | None = None

    @property
    def hello(self) -> PeerHello:
        """What peers are told; known after `start`."""
        if self._hello is None:
            raise InternalError("the transfer thread has not started")
        return self._hello

    @property
    def links(self) -> dict[str, Link]:
        """What was measured of the connections to peers that this worker pushes to, by peer."""
        return self._pump.links if self._pump is not None else {}

    async def start(self) -> PeerHello:
        """Create the agent on its thread.

        Raises:
            TransferError: it cannot be created.
        """
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._thread.start()
        self._hello = await self._started
        return self._hello

    async def stop(self) -> None:
        """End the thread and its agent; whatever was in flight ends with it. Idempotent."""
        self._commands.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def knows(self, peer_id: str) -> bool:
        return peer_id in self._peers

    async def add_peer(self, hello: PeerHello, *, probe: bool = False) -> None:
        """Meet a peer, once both sides' hellos are compared. A known peer is not an error.

        Args:
            probe: measure the connection as well, in the background.

        Raises:
            Incompatible: its blocks would mean something else here.
            TransferError: it cannot be reached.
        """
        check_compatible(self.hello, hello)
        if hello.worker_id not in self._peers:
            if reason := slow_path(self.hello, hello):
                log.warning("slow path between %s and %s: %s", self._worker_id, hello.worker_id, reason)
            await self._call(lambda pump: pump.add_peer(hello, probe=probe))
            self._peers.add(hello.worker_id)

    async def settle(self) -> None:
        """Take in whatever peers' bytes have reached this machine, see `TransferPump.settle`."""
        await self._call(lambda pump: pump.settle())

    async def lose_peer(self, peer_id: str) -> None:
        """The peer's process is proven dead: its transfers end now and are quiet."""
        self._peers.discard(peer_id)
        await self._call(lambda pump: pump.lose_peer(peer_id))

    def push(self, ticket: Ticket) -> asyncio.Future[Pushed]:
        """Begin a push to the ticket's decode worker. The result comes when nothing of it is in flight any more."""
        received_at = time.monotonic()
        return self._promise(lambda pump, settle: pump.pusher.push(ticket, received_at, settle))

    def ready(
        self, transfer_id: str, first_index: int, blocks: Sequence[int], last: bool, first_tokens: Sequence[int] = ()
    ) -> None:
        """Prompt blocks first_index.. are final in local `blocks`; the `last` ones bring the first tokens."""
        at = time.monotonic()
        self._put(lambda pump: pump.pusher.ready(transfer_id, first_index, list(blocks), last, list(first_tokens), at))

    async def abort(self, transfer_id: str) -> Pushed:
        """Returns when nothing of the transfer is in flight, and nothing of it will ever be posted. Idempotent.

        Its slots may be reused only if what is returned is `settled`.
        """
        quiet: asyncio.Future[Pushed] = self._promise(lambda pump, settle: pump.pusher.abort(transfer_id, settle))
        return await quiet

    def expect(self, incoming: IncomingTransfer) -> None:
        self._expected.add(incoming.transfer_id)
        self._put(lambda pump: pump.receiver.expect(incoming))

    def forget(self, transfer_id: str) -> None:
        """Stop expecting; `on_delivery` is not called for this transfer afterwards. Idempotent."""
        self._expected.discard(transfer_id)
        self._put(lambda pump: pump.receiver.forget(transfer_id))

    # -- between the loop and the thread

    def _put(self, command: Callable[[TransferPump], None]) -> None:
        if self.ended.is_set():
            raise TransferError("the transfer thread has ended")
        self._commands.put(command)

    def _call(self, function: Callable[[TransferPump], Result]) -> asyncio.Future[Result]:
        """Run on the thread; its result or exception comes back."""

        def run(pump: TransferPump, settle: Callable[[Result], None]) -> None:
            settle(function(pump))

        return self._promise(run)

    def _promise(self, function: Callable[[TransferPump, Callable[[Result], None]], None]) -> asyncio.Future[Result]:
        """Run on the thread; the future gets what `function` gives to its second argument, now or later."""
        assert self._loop is not None
        future: asyncio.Future[Result] = self._loop.create_future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)

        def command(pump: TransferPump) -> None:
            try:
                function(pump, lambda result: self._post(_set_result, future, result))
            except TransferError as error:
                self._post(_set_exception, future, error)

        self._put(command)
        return future

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _arrived(self, arrival: Arrival) -> None:
        if arrival.delivery.transfer_id in self._expected:
            self._on_delivery(arrival)

    def _missed(self, missed: Missed) -> None:
        if missed.transfer_id in self._expected:
            self._on_missed(missed)

    def _unanswered(self, peer_id: str) -> None:
        self.on_unanswered(peer_id)

    # -- on the thread

    def _run(self) -> None:
        try:
            agent = self._make_agent()
            try:
                pump = self._make_pump(agent)
                self._post(
                    _set_result, self._started, self._layout.hello(self._worker_id, agent.metadata(), self._transports)
                )
                self._serve(pump)
            finally:
                agent.close()
        except Exception as error:
            log.exception("the transfer thread failed")
            self._post(self._end, error)
        else:
            self._post(self._end, None)

    def _make_pump(self, agent: TransferAgent) -> TransferPump:
        def on_arrival(arrival: Arrival) -> None:
            self._post(self._arrived, arrival)

        pump = TransferPump(
            agent,
            self._layout.block_bytes,
            self._pool,
            on_arrival,
            time.monotonic,
            checks=self._checks,
            acknowledged=True,
            on_missed=lambda missed: self._post(self._missed, missed),
            on_lost=lambda peer_id: self._post(self._peers.discard, peer_id),
            on_unanswered=lambda peer_id: self._post(self._unanswered, peer_id),
            scratch_block=self._layout.scratch_block,
        )
        self.counters = pump.counters
        self._pump = pump
        return pump

    def _serve(self, pump: TransferPump) -> None:
        # A promise was queued before its delivery was sent, so it must be known before that is acted on.
        pump.before_acting = lambda: self._obey(pump, 0.0)
        wait_s = 0.0
        while self._obey(pump, wait_s):
            wait_s = 0.0 if pump.step() else pump.wait_s()

    def _obey(self, pump: TransferPump, wait_s: float) -> bool:
        """Run every waiting command; wait up to `wait_s` for a first one. False: told to stop."""
        try:
            command = self._commands.get(timeout=wait_s) if wait_s else self._commands.get_nowait()
            while command is not None:
                command(pump)
                command = self._commands.get_nowait()
        except queue.Empty:
            return True
        self._commands.put(None)  # for whoever asks next
        return False

    def _end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()
        for future in (self._started, *list(self._pending)):
            _set_exception(future, TransferError(f"the transfer thread has ended: {error!r}"))


def _set_result(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
