"""The workers this one has met. Before any KV moves, two workers compare fingerprints and exchange addresses, once."""

from __future__ import annotations

import asyncio

from diptych import rpc
from diptych.errors import DeadlineExceeded, LegFailed
from diptych.messages import PeerHello
from kv_transfer.layout import check_compatible
from kv_transfer.transfer_thread import TransferThread

MEET_TIMEOUT_S = 5.0


class Peers:
    def __init__(self, transfers: TransferThread) -> None:
        self._transfers = transfers
        self._stubs: dict[str, rpc.WorkerStub] = {}
        self._meetings: dict[str, asyncio.Task[None]] = {}

    async def meet(self, worker_id: str, address: str) -> None:
        """Be ready to push to `worker_id`. Concurrent callers share one meeting; a failed one is not remembered.

        Raises:
            Incompatible: the fingerprints differ.
            LegFailed: it cannot be reached, or another incarnation answers at that address.
        """
        meeting = self._meetings.get(worker_id)
        if meeting is None:
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
            self._stubs[worker_id] = rpc.WorkerStub(address)
        return self._stubs[worker_id]

    def answer(self, hello: PeerHello) -> PeerHello:
        """The other side of `meet`.

        Raises:
            Incompatible: the fingerprints differ.
        """
        check_compatible(self._transfers.hello, hello)
        return self._transfers.hello

    async def forget(self, worker_id: str) -> None:
        """A peer is gone; a worker never comes back under the same id."""
        self._meetings.pop(worker_id, None)
        if (stub := self._stubs.pop(worker_id, None)) is not None:
            await stub.close()
        await self._transfers.lose_peer(worker_id)

    async def close(self) -> None:
        await asyncio.gather(*(stub.close() for stub in self._stubs.values()))

    async def _meet(self, worker_id: str, address: str) -> None:
        try:
            hello = await self.stub(worker_id, address).call(rpc.MEET, self._transfers.hello, MEET_TIMEOUT_S)
        except DeadlineExceeded:
            raise LegFailed(f"{worker_id} did not answer a greeting within {MEET_TIMEOUT_S:g} s") from None
        if hello.worker_id != worker_id:
            raise LegFailed(f"{address} is now {hello.worker_id}, not {worker_id}: that incarnation is gone")
        await self._transfers.add_peer(hello)
