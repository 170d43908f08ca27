"""The pushing half of a worker's transfers: executes `OutgoingTransfer`s against one agent.

`step()` does at most one thing for every push, so that many pushes share the agent and an abort never waits behind a
long one. A ticket is used once: a transfer that ended or was revoked, even before it began, never begins again.

Knows nothing about threads, event loops or requests; the clock is given.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from diptych.messages import Delivery, Receipt, Ticket, Written
from kv_transfer.agent import PeerLost, TransferAgent, TransferError, WriteState
from kv_transfer.checksum import NO_CHECKS, Checks, Pool, checksum
from kv_transfer.notification import seal
from kv_transfer.outcome import Counters, Pushed
from kv_transfer.push import Push, Write
from kv_transfer.transfer import EndReason, Notify, OutgoingTransfer, Post, Refusal

log = logging.getLogger(__name__)

MAX_SPENT = 65_536  # transfer ids remembered; one only matters for the life of its ticket, a request's deadline


class Pusher:
    """All outgoing transfers of one worker."""

    def __init__(
        self,
        agent: TransferAgent,
        block_bytes: int,
        pool: Pool | None,
        counters: Counters,
        clock: Callable[[], float],
        checks: Checks = Checks(),  # noqa: B008 (frozen)
        acknowledged: bool = False,
        on_lost: Callable[[str], None] = lambda peer_id: None,
        on_unanswered: Callable[[str], None] = lambda peer_id: None,
    ) -> None:
        """
        Args:
            pool: None: nothing is checksummed.
            acknowledged: peers answer deliveries; without an answer they are sent again.
            on_lost: called with every peer that was forgotten.
            on_unanswered: called with a peer whenever a delivery to it has to be sent again.
        """
        self._agent = agent
        self._block_bytes = block_bytes
        self._pool = pool
        self._counters = counters
        self._clock = clock
        self._checks = checks if pool is not None else NO_CHECKS
        self._acknowledged = acknowledged
        self._on_lost = on_lost
        self._on_unanswered = on_unanswered
        self._pushes: dict[str, Push] = {}
        self._spent: OrderedDict[str, bool] = OrderedDict()  # ended, or revoked before they began: whether settled

    @property
    def active(self) -> bool:
        """A write is in flight, or may be posted without another call, or a receipt is about to come."""
        return any(push.machine.busy for push in self._pushes.values())

    def push(self, ticket: Ticket, received_at: float, on_quiet: Callable[[Pushed], None]) -> None:
        """Begin a push; `on_quiet` is called once, when it ended and nothing of it is in flight."""
        if ticket.transfer_id in self._spent or ticket.transfer_id in self._pushes:
            on_quiet(Pushed(EndReason.ABORTED))
            return
        machine = OutgoingTransfer(
            ticket.transfer_id,
            ticket.slots,
            ticket.first_block,
            received_at + ticket.ttl_ms / 1_000,
            self._acknowledged,
        )
        checked = self._checks.chosen(ticket.transfer_id, len(ticket.slots))
        self._pushes[ticket.transfer_id] = Push(machine, ticket.decode_id, checked, [on_quiet])

    def ready(
        self, transfer_id: str, first_index: int, blocks: list[int], last: bool, first_tokens: list[int], at: float
    ) -> None:
        """Blocks of a push became final at time `at`. An unknown transfer has ended: nothing to do."""
        push = self._pushes.get(transfer_id)
        if push is not None:
            push.last_token_at = at
            push.machine.ready(first_index, blocks, last, first_tokens)

    def abort(self, transfer_id: str, on_quiet: Callable[[Pushed], None]) -> None:
        """Post nothing more for a transfer, now or ever; `on_quiet` as for `push`, at once if it is quiet already.

        Only if what it is given is `settled` may the transfer's slots be reused.
        """
        push = self._pushes.get(transfer_id)
        if push is None:
            settled = self._spent.get(transfer_id, True)
            self._spend(transfer_id, settled)
            on_quiet(Pushed(EndReason.ABORTED, settled=settled))
            return
        push.on_quiet.append(on_quiet)
        push.machine.abort()

    def receipt(self, sender: str, receipt: Receipt) -> None:
        """Peer `sender` answered a delivery. What does not fit is counted like a refused delivery."""
        refusal = self._settle(sender, receipt)
        if refusal is not None:
            self._counters.refused[refusal] += 1

    def lose_peer(self, peer_id: str) -> None:
        """The peer's process or its connection is gone: its transfers end and are quiet."""
        for push in self._pushes.values():
            if push.peer_id == peer_id:
                push.machine.peer_lost()
                for write in push.writes.values():
                    self._release(write.handle)
                push.writes.clear()
        self._agent.remove_peer(peer_id)
        self._on_lost(peer_id)

    def step(self) -> bool:
        """One turn for every push. True: something was done, and another turn may do more at once."""
        worked = False
        for push in list(self._pushes.values()):
            worked |= self._poll(push)
            worked |= self._advance(push)
        self._finish_quiet()
        return worked

    def check(self) -> None:
        """Assert the invariants."""
        for push in self._pushes.values():
            push.machine.check()
            assert set(push.writes) == set(push.machine.writes_in_flight)

    def _settle(self, sender: str, receipt: Receipt) -> Refusal | None:
        push = self._pushes.get(receipt.transfer_id)
        if push is None:
            return Refusal.DUPLICATE if receipt.transfer_id in self._spent else Refusal.UNKNOWN_TRANSFER
        if sender != push.peer_id or receipt.decode_id != push.peer_id:
            return Refusal.WRONG_DECODE
        if receipt.prefill_id != self._agent.name:
            return Refusal.WRONG_PREFILL
        try:
            refusal = None if receipt.refusal is None else Refusal(receipt.refusal)
        except ValueError:
            return Refusal.MALFORMED
        return None if push.machine.receipt(refusal) else Refusal.UNKNOWN_TRANSFER

    def _poll(self, push: Push) -> bool:
        done = False
        for write_id in list(push.writes):
            done |= write_id in push.writes and self._poll_write(push, write_id)
        return done

    def _poll_write(self, push: Push, write_id: int) -> bool:
        write = push.writes[write_id]
        try:
            if self._agent.poll(write.handle) is WriteState.IN_PROGRESS:
                return False
        except PeerLost:
            self.lose_peer(push.peer_id)
            return True
        except TransferError as error:
            log.warning("transfer %s: %s", push.machine.transfer_id, error)
            push.machine.write_failed(write_id)
        else:
            push.num_bytes += write.num_bytes
            push.machine.write_done(write_id, write.checksums)
            self._tell(push, write)
        push.ended(write_id, self._clock())
        self._release(write.handle)
        return True

    def _advance(self, push: Push) -> bool:
        instruction = push.machine.advance(self._clock())
        if instruction is None:
            return False
        write_id = instruction.write_id if isinstance(instruction, Post) else None
        try:
            if isinstance(instruction, Post):
                self._post(push, instruction)
            else:
                self._notify(push, instruction)
        except PeerLost:
            self.lose_peer(push.peer_id)
        except TransferError as error:
            log.warning("transfer %s: %s", push.machine.transfer_id, error)
            push.machine.write_failed(write_id)
        return True

    def _post(self, push: Push, post: Post) -> None:
        now = self._clock()
        handle = self._agent.post_write(push.peer_id, post.pairs)
        # Checksums after the post: where it is asynchronous they cost no time of the transfer.
        sums = [
            checksum(self._pool, block) if self._pool is not None and index in push.checked else None
            for index, (block, _) in enumerate(post.pairs, post.first_index)
        ]
        push.posted(post.write_id, Write(handle, post.first_index, sums, len(sums) * self._block_bytes), now)
        self._poll_write(push, post.write_id)

    def _tell(self, push: Push, write: Write) -> None:
        """Let decode verify what has arrived while the rest is computed or written. If it does not hear it, no harm."""
        machine, last = push.machine, write.first_index + len(write.checksums)
        if machine.end is not None or machine.delivery_due or all(each is None for each in write.checksums):
            return
        written = Written(
            transfer_id=machine.transfer_id,
            decode_id=push.peer_id,
            prefill_id=self._agent.name,
            first_index=write.first_index,
            slots=list(machine.slots[write.first_index : last]),
            checksums=write.checksums,
        )
        try:
            self._agent.send_notification(push.peer_id, seal(written))
        except TransferError as error:  # if the peer is lost, the next write or the delivery finds out
            log.debug("transfer %s: %s", machine.transfer_id, error)

    def _notify(self, push: Push, notify: Notify) -> None:
        now = self._clock()
        delivery = Delivery(
            transfer_id=push.machine.transfer_id,
            decode_id=push.peer_id,
            prefill_id=self._agent.name,
            slots=list(notify.slots),
            checksums=list(notify.checksums),
            first_tokens=list(notify.first_tokens),
            first_post_ms=0.0 if push.first_post_at is None else (now - push.first_post_at) * 1_000,
            last_token_ms=(now - push.last_token_at) * 1_000,
        )
        self._agent.send_notification(push.peer_id, seal(delivery))
        if push.machine.num_sent:
            self._counters.deliveries_resent_total += 1
            self._on_unanswered(push.peer_id)
        push.machine.notified(now)

    def _finish_quiet(self) -> None:
        for transfer_id, push in list(self._pushes.items()):
            if not push.machine.quiet:
                continue
            del self._pushes[transfer_id]
            self._spend(transfer_id, push.machine.settled)
            outcome = push.outcome()
            self._counters.outgoing[outcome.end] += 1
            if outcome.end is not EndReason.ABORTED:
                self._counters.count(outcome.num_bytes, outcome.seconds, failed=outcome.end is not EndReason.DELIVERED)
            if outcome.num_bytes and push.busy_seconds > 0:
                self._counters.measure(outcome.num_bytes / push.busy_seconds)
            for on_quiet in push.on_quiet:
                on_quiet(outcome)

    def _spend(self, transfer_id: str, settled: bool) -> None:
        self._spent[transfer_id] = settled
        if len(self._spent) > MAX_SPENT:
            self._spent.popitem(last=False)

    def _release(self, handle: int) -> None:
        try:
            self._agent.release(handle)
        except TransferError as error:
            log.warning("a transfer handle could not be released: %s", error)
