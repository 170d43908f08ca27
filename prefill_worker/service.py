"""What a prefill worker does with a request: compute the prompt, push its KV, draw the first token, let go.

    start ──► engine (chunks) ──► ready blocks ──► transfer thread (writes, then one notification) ──► blocks freed
                     └──► first token ──► router

A request is closed when its KV is delivered, or when every choice ended with its first token and nobody needs the KV.
Source blocks stay pinned until the transfer is quiet: NIXL cannot cancel, so a released write may still be reading.
"""

from __future__ import annotations

from collections.abc import Awaitable

from diptych.engine.interface import Kind, ReadyBlocks
from diptych.errors import BadRequest, Cancelled, LegFailed
from diptych.messages import LEG_OVER, Revoke, Revoked, Start, Started, Ticket, Update
from diptych.worker.requests import Entry, Fence
from diptych.worker.service import BaseService, Parts
from kv_transfer.outcome import Pushed


class PrefillService(BaseService):
    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._revoked = Fence()  # transfer ids nothing may ever be posted for again
        self._by_transfer: dict[str, str] = {}  # transfer id: request id, while open

    async def start(self, request: Start) -> Started:
        ticket = request.ticket
        if ticket is None:
            raise BadRequest(f"{self._parts.worker_id} is a prefill worker: a request needs a decode worker's ticket")
        if ticket.transfer_id in self._revoked:
            raise LegFailed(f"transfer {ticket.transfer_id} was revoked by {ticket.decode_id}")
        entry = self._open(request.submission)
        entry.ticket = ticket
        self._by_transfer[ticket.transfer_id] = entry.request_id
        try:
            await self._parts.peers.meet(ticket.decode_id, ticket.decode_address)
            if self._requests.get(entry.request_id) is not entry:
                raise entry.error or Cancelled("the request was aborted before it began")
            pushed = self._transfers.push(ticket)
            await self._add(entry, Kind.PREFILL, ticket.first_block)
        except BaseException:
            if self._requests.close(entry.request_id) is not None:
                self._release(entry)
            raise
        self._spawn(self._close_when_pushed(entry, ticket, pushed))
        return Started(self._parts.worker_id)

    async def revoke(self, request: Revoke) -> Revoked:
        if request.prefill_id != self._parts.worker_id:
            raise LegFailed(f"{self._parts.worker_id} cannot speak for {request.prefill_id}")
        self._revoked.add(request.transfer_id)
        entry = self._requests.get(self._by_transfer.get(request.transfer_id, ""))
        if entry is not None:
            self._end_with(entry, LegFailed("the decode worker revoked the transfer"))
        pushed = await self._transfers.abort(request.transfer_id)
        if not pushed.settled:  # only the end of this process proves that they will not, and decode needs its blocks
            self._parts.log.error("write_failed", transfer=request.transfer_id, next="drain and be replaced")
            self.worn_out.set()
            raise LegFailed(f"a write of transfer {request.transfer_id} failed; bytes of it may still land")
        return Revoked(request.transfer_id)

    def _on_ready(self, ready: ReadyBlocks) -> None:
        entry = self._requests.get(ready.request_id)
        if entry is not None and entry.ticket is not None and not ready.finished:
            self._transfers.ready(
                entry.ticket.transfer_id, ready.first_index, ready.blocks, ready.last, ready.first_tokens
            )

    def _on_finished(self, entry: Entry) -> None:
        """Every choice ended with its first token: the router releases decode, nothing is delivered."""
        self._requests.close(entry.request_id)
        self._release(entry)

    async def _close_when_pushed(self, entry: Entry, ticket: Ticket, pushed: Awaitable[Pushed]) -> None:
        """The transfer came to its end by itself, delivered or failed, or was aborted with its request."""
        result = await pushed
        if self._requests.get(entry.request_id) is not entry:
            return
        if result.handed_over:
            self._requests.close(entry.request_id)
            self.outbox.send(entry.router_id, [Update(entry.request_id, LEG_OVER, 0, [])])
            self._release(entry)
            return
        self._end_with(entry, LegFailed(f"the KV transfer to {ticket.decode_id} ended: {result.end}"))

    def _release(self, entry: Entry) -> None:
        self._engine.post(lambda engine: engine.hold(entry.request_id))
        self._spawn(self._free_when_quiet(entry))

    async def _free_when_quiet(self, entry: Entry) -> None:
        if entry.ticket is not None:
            await self._transfers.abort(entry.ticket.transfer_id)
            self._by_transfer.pop(entry.ticket.transfer_id, None)
        self._engine.post(lambda engine: engine.release(entry.request_id))
