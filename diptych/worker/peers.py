"""The workers this one has met. Before any KV moves, two workers compare fingerprints and exchange addresses, once."""

from __future__ import annotations

import asyncio
import contextlib

from diptych import rpc
from diptych.errors import DeadlineExceeded, DiptychError, LegFailed
from diptych.messages import PeerHello
from diptych.tls import ClusterTls
from kv_transfer.transfer_thread import TransferThread

MEET_TIMEOUT_S = 5.0


class Peers:
    def __init__(self, transfers: TransferThread, tls: ClusterTls | None = None) -> None:
        self._transfers = transfers
        self._tls = tls
        self._stubs: dict[str, rpc.WorkerStub] = {}
        self._meetings: dict[str, asyncio.Task[None]] = {}
        self._greetings: dict[str, asyncio.Task[None]] = {}
        transfers.on_unanswered = self._greet_again

    async def meet(self, worker_id: str, address: str) -> None:
        """Be ready to push to `worker_id`. Concurrent callers share one meeting; a failed one is not remembered.

        Raises:
            Incompatible: the fingerprints differ.
            LegFailed: it cannot be reached, or another incarnation answers at that address.
        """
        meeting = self._meetings.get(worker_id)
        if meeting is None or (meeting.done() and not self._transfers.knows(worker_id)):  # never met, or lost since
            meeting = asyncio.create_task(self._meet(worker_id, address))
            self._meetings[worker_id] = meeting
        try:
            await asyncio.shield(meeting)
        except BaseException:
            if meeting.done() and self._meetings.get(worker_id) is meeting:
                del self._meetings[worker_id]
            raise

    def stub(self, worker_id: str, address: str) -> rpc.WorkerStub:
        """A channel to a peer, shared by all calls to it."""
        if worker_id not in self._stubs:
            self._stubs[worker_id] = rpc.WorkerStub(address, self._tls)
        return self._stubs[worker_id]

    async def answer(self, hello: PeerHello) -> PeerHello:
        """The other side of `meet`: be ready to answer what it pushes.

        Raises:
            Incompatible: the fingerprints differ.
            TransferError: it cannot be reached from here.
        """
        await self._transfers.add_peer(hello)
        return self._transfers.hello

    async def forget(self, worker_id: str) -> None:
        """A peer is gone; a worker never comes back under the same id."""
        self._meetings.pop(worker_id, None)
        if (stub := self._stubs.pop(worker_id, None)) is not None:
            await stub.close()
        await self._transfers.lose_peer(worker_id)

    def _greet_again(self, worker_id: str) -> None:
        """A peer does not answer: its connection to us may be gone, which it has noticed and we have not."""
        if worker_id in self._stubs and worker_id not in self._greetings:
            greeting = asyncio.create_task(self._greet(worker_id, self._stubs[worker_id]))
            self._greetings[worker_id] = greeting
            greeting.add_done_callback(lambda _: self._greetings.pop(worker_id))

    async def _greet(self, worker_id: str, stub: rpc.WorkerStub) -> None:
        with contextlib.suppress(DiptychError):  # it will be tried again with the next copy of the delivery
            await stub.call(rpc.MEET, self._transfers.hello, MEET_TIMEOUT_S)

    async def close(self) -> None:
        for greeting in list(self._greetings.values()):
            greeting.cancel()
        await asyncio.gather(*self._greetings.values(), return_exceptions=True)
        await asyncio.gather(*(stub.close() for stub in self._stubs.values()))

    async def _meet(self, worker_id: str, address: str) -> None:
        try:
            hello = await self.stub(worker_id, address).call(rpc.MEET, self._transfers.hello, MEET_TIMEOUT_S)
        except DeadlineExceeded:
            raise LegFailed(f"{worker_id} did not answer a greeting within {MEET_TIMEOUT_S:g} s") from None
        if hello.worker_id != worker_id:
            raise LegFailed(f"{address} is now {hello.worker_id}, not {worker_id}: that incarnation is gone")
        await self._transfers.add_peer(hello, probe=True)
