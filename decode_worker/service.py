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
from diptych.errors import BadRequest, Cancelled, DiptychError, LegFailed
from diptych.messages import Reserve, Revoke, Start, Started, Ticket, Update
from diptych.worker.requests import Entry
from diptych.worker.service import BaseService, Parts
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.outcome import Arrival, Missed

REVOKE_TIMEOUT_S = 5.0
REVOKE_RETRY_S = 0.25
REVOKE_LONGEST_RETRY_S = 4.0
MAX_QUARANTINED_SHARE = 0.5  # of all blocks; with more than this the worker is of little use to anyone else


class DecodeService(BaseService):
    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._grants: dict[str, asyncio.Future[Reservation]] = {}  # request id: waits for blocks
        self._expected: dict[str, Reserve] = {}  # request id: its KV has been promised and has not arrived
        self._by_transfer: dict[str, str] = {}  # transfer id: request id, while expected
        self._arrivals: dict[str, Arrival] = {}  # request id: told with its first update
        self._choked_since: float | None = None  # loop time: more than `MAX_QUARANTINED_SHARE` is quarantined

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

    def on_missed(self, missed: Missed) -> None:
        """The KV will not come: the request ends here, and the router tries it elsewhere."""
        entry = self._requests.get(self._by_transfer.get(missed.transfer_id, ""))
        if entry is not None:
            reason = missed.refusal or missed.end
            self._end_with(entry, LegFailed(f"the KV of transfer {missed.transfer_id} was not delivered: {reason}"))

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
            self._watch_quarantine()
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, REVOKE_LONGEST_RETRY_S)
        await self._transfers.settle()
        self._engine.post(lambda engine: engine.confirm_quiet(request_id))

    def _watch_quarantine(self) -> None:
        """Blocks that a stopped peer may still write to cannot be freed; a new process has memory of its own.

        Called for as long as anything is quarantined, at least every `REVOKE_LONGEST_RETRY_S`.
        """
        stats, now = self._engine.stats, asyncio.get_running_loop().time()
        if stats.blocks_quarantined <= MAX_QUARANTINED_SHARE * stats.blocks_total:
            self._choked_since = None
            return
        self._choked_since = self._choked_since or now
        if now - self._choked_since >= self._parts.config.quarantine_patience_s and not self.worn_out.is_set():
            self._parts.log.error(
                "quarantine_limit", blocks=stats.blocks_quarantined, of=stats.blocks_total, next="drain and be replaced"
            )
            self.worn_out.set()


def _retrieve(grant: asyncio.Future[Reservation]) -> None:
    """Look at a failure nobody waits for any more, or asyncio reports it as forgotten."""
    if not grant.cancelled():
        grant.exception()
