"""What a decode worker does with a request: hold blocks, receive KV into them, stream what follows.

    reserve ──► engine grants blocks ──► ticket ──(prefill writes)──► delivery checked ──► engine decodes ──► router
    start   ──► the engine computes the prompt here as well (no prefill worker, or it would not pay)

A reservation that ends after its ticket left may still be written to: NIXL can neither cancel nor revoke. Its blocks
are quarantined until the prefill worker says that no write of it is or will be in flight, or is proven dead.
"""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import msgspec

from diptych import rpc
from diptych.engine.interface import Kind, Reservation
from diptych.engine.sequence import finish_reason
from diptych.errors import BadRequest, Cancelled, DiptychError
from diptych.messages import Reserve, Revoke, Start, Started, Ticket, Update
from diptych.worker.requests import Entry
from diptych.worker.service import BaseService, Parts
from kv_transfer.outcome import Arrival
from kv_transfer.transfer import IncomingTransfer

REVOKE_TIMEOUT_S = 5.0
REVOKE_RETRY_S = 0.25
REVOKE_LONGEST_RETRY_S = 4.0


class DecodeService(BaseService):
    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._grants: dict[str, asyncio.Future[Reservation]] = {}  # request id: waits for blocks
        self._expected: dict[str, Reserve] = {}  # request id: its KV has been promised and has not arrived
        self._by_transfer: dict[str, str] = {}  # transfer id: request id, while expected
        self._arrivals: dict[str, Arrival] = {}  # request id: told with its first update

    async def reserve(self, request: Reserve) -> Ticket:
        """Waits until the blocks are there; the caller's deadline is the limit."""
        entry = self._open(request.submission)
        grant: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        grant.add_done_callback(_retrieve)  # the caller may have gone when the grant fails
        self._grants[entry.request_id] = grant
        try:
            await self._add(entry, Kind.RECEIVE)
            reservation = await grant
            if self._requests.get(entry.request_id) is not entry:  # ended between the grant and here
                raise entry.error or Cancelled("the request was aborted while it waited for blocks")
            return self._promise(request, entry, reservation)
        except BaseException:
            if self._requests.close(entry.request_id) is not None:
                self._release(entry)
            raise
        finally:
            self._grants.pop(entry.request_id, None)

    async def start(self, request: Start) -> Started:
        if request.ticket is not None:
            raise BadRequest(f"{self._parts.worker_id} is a decode worker: it pushes no KV, so it takes no ticket")
        entry = self._open(request.submission)
        await self._add(entry, Kind.LOCAL)
        return Started(self._parts.worker_id)

    def _promise(self, request: Reserve, entry: Entry, reservation: Reservation) -> Ticket:
        entry.ticket = Ticket(
            transfer_id=uuid4().hex,
            decode_id=self._parts.worker_id,
            decode_address=self._parts.address,
            first_block=reservation.first_block,
            slots=reservation.slots,
            ttl_ms=max(1, int(entry.remaining_s * 1e3)),  # prefill may queue and compute for as long as there is time
        )
        self._expected[entry.request_id] = request
        self._by_transfer[entry.ticket.transfer_id] = entry.request_id
        self._transfers.expect(
            IncomingTransfer(
                entry.ticket.transfer_id,
                self._parts.worker_id,
                request.prefill_id,
                reservation.slots,
                entry.submission.sampling.n,
            )
        )
        self._engine.post(lambda engine: engine.mark_in_flight(entry.request_id))
        return entry.ticket

    def _on_reservation(self, reservation: Reservation) -> None:
        grant = self._grants.get(reservation.request_id)
        if grant is not None and not grant.done():
            grant.set_result(reservation)

    def on_arrival(self, arrival: Arrival) -> None:
        """KV is here and checked, or came damaged: then the prompt is computed here instead."""
        delivery = arrival.delivery
        entry = self._requests.get(self._by_transfer.pop(delivery.transfer_id, ""))
        if entry is None:
            return
        request_id, first_tokens = entry.request_id, delivery.first_tokens
        self._transfers.forget(delivery.transfer_id)
        del self._expected[request_id]  # the pusher is done: its blocks are ours alone again
        entry.phase_began = time.time() - arrival.transfer_ms / 1e3
        self._end_phase(
            entry, "transfer", {"diptych.transfer_bytes": arrival.num_bytes, "diptych.exposed_ms": arrival.exposed_ms}
        )
        if arrival.bad_blocks:
            self._parts.log.error("kv_damaged", transfer=delivery.transfer_id, blocks=len(arrival.bad_blocks))
            self._engine.post(lambda engine: engine.recompute(request_id, first_tokens))
        else:
            self._arrivals[request_id] = arrival
            self._engine.post(lambda engine: engine.deliver(request_id, first_tokens))
        sampling = entry.submission.sampling
        entry.open_choices -= sum(finish_reason(token, 0, sampling) is not None for token in first_tokens)
        if not entry.open_choices:
            self._on_finished(entry)

    def _dress(self, entry: Entry, update: Update) -> Update:
        """The request's first update here tells what its transfer cost."""
        arrival = self._arrivals.pop(entry.request_id, None)
        if arrival is None or update.stats is None:
            return update
        stats = msgspec.structs.replace(
            update.stats,
            transfer_bytes=arrival.num_bytes,
            transfer_ms=arrival.transfer_ms,
            exposed_ms=arrival.exposed_ms,
        )
        return msgspec.structs.replace(update, stats=stats)

    def _on_finished(self, entry: Entry) -> None:
        self._end_phase(entry, "decode", {"diptych.choices": entry.submission.sampling.n})
        self._requests.close(entry.request_id)
        self._arrivals.pop(entry.request_id, None)

    def _release(self, entry: Entry) -> None:
        """Blocks that may still be written to stay quarantined until that is disproved."""
        request_id = entry.request_id
        if (grant := self._grants.get(request_id)) is not None and not grant.done():
            grant.set_exception(entry.error or Cancelled("the request was aborted while it waited for blocks"))
        self._arrivals.pop(request_id, None)
        self._engine.post(lambda engine: engine.abort(request_id))
        if (promised := self._expected.pop(request_id, None)) is not None and entry.ticket is not None:
            self._by_transfer.pop(entry.ticket.transfer_id, None)
            self._transfers.forget(entry.ticket.transfer_id)
            self._spawn(self._prove_quiet(request_id, entry.ticket.transfer_id, promised), drains=False)

    async def _prove_quiet(self, request_id: str, transfer_id: str, promised: Reserve) -> None:
        """Ask the pusher until it answers or is dead; then the quarantined blocks are free."""
        retry_s = REVOKE_RETRY_S
        while True:
            stub = self._parts.peers.stub(promised.prefill_id, promised.prefill_address)
            try:
                await stub.call(rpc.REVOKE, Revoke(transfer_id, promised.prefill_id), REVOKE_TIMEOUT_S)
                break
            except DiptychError as error:
                if await self._parts.is_dead(promised.prefill_id):
                    await self._parts.peers.forget(promised.prefill_id)
                    break
                if retry_s == REVOKE_RETRY_S:
                    self._parts.log.warning(
                        "revoke_failed", transfer=transfer_id, peer=promised.prefill_id, reason=error.code
                    )
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, REVOKE_LONGEST_RETRY_S)
        self._engine.post(lambda engine: engine.confirm_quiet(request_id))


def _retrieve(grant: asyncio.Future[Reservation]) -> None:
    """Look at a failure nobody waits for any more, or asyncio reports it as forgotten."""
    if not grant.cancelled():
        grant.exception()
