"""The pushing half of a worker's transfers: executes `OutgoingTransfer`s against one agent.

`step()` does at most one thing for every push, so that many pushes share the agent and an abort never waits behind a
long one. A ticket is used once: a transfer that ended or was revoked, even before it began, never begins again.

Knows nothing about threads, event loops or requests; the clock is given.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from diptych.messages import Delivery, Ticket
from kv_transfer.agent import PeerLost, TransferAgent, TransferError, WriteState
from kv_transfer.checksum import Pool, checksums
from kv_transfer.outcome import Counters, Pushed
from kv_transfer.transfer import EndReason, Notify, OutgoingTransfer, Post

log = logging.getLogger(__name__)

MAX_SPENT = 65_536  # transfer ids remembered; one only matters for the life of its ticket, a request's deadline


@dataclass(slots=True)
class _Write:
    handle: int
    checksums: list[int]
    num_bytes: int


@dataclass(slots=True)
class _Push:
    machine: OutgoingTransfer
    peer_id: str
    on_quiet: list[Callable[[Pushed], None]]
    writes: dict[int, _Write] = field(default_factory=dict)  # by the machine's write id
    num_bytes: int = 0
    first_post_at: float | None = None
    last_done_at: float = 0.0
    last_token_at: float = 0.0
    busy_since: float = 0.0
    busy_seconds: float = 0.0  # with at least one write in flight

    def outcome(self) -> Pushed:
        seconds = max(0.0, self.last_done_at - self.first_post_at) if self.first_post_at is not None else 0.0
        return Pushed(self.machine.end or EndReason.ABORTED, self.num_bytes, seconds)


class Pusher:
    """All outgoing transfers of one worker."""

    def __init__(
        self,
        agent: TransferAgent,
        block_bytes: int,
        pool: Pool | None,
        counters: Counters,
        clock: Callable[[], float],
    ) -> None:
        self._agent = agent
        self._block_bytes = block_bytes
        self._pool = pool
        self._counters = counters
        self._clock = clock
        self._pushes: dict[str, _Push] = {}
        self._spent: OrderedDict[str, None] = OrderedDict()  # ended, or revoked before they began

    @property
    def active(self) -> bool:
        """A write is in flight, or may be posted without another call."""
        return any(push.machine.busy for push in self._pushes.values())

    def push(self, ticket: Ticket, received_at: float, on_quiet: Callable[[Pushed], None]) -> None:
        """Begin a push; `on_quiet` is called once, when it ended and nothing of it is in flight."""
        if ticket.transfer_id in self._spent or ticket.transfer_id in self._pushes:
            on_quiet(Pushed(EndReason.ABORTED))
            return
        deadline = received_at + ticket.ttl_ms / 1_000
        machine = OutgoingTransfer(ticket.transfer_id, ticket.slots, ticket.first_block, deadline)
        self._pushes[ticket.transfer_id] = _Push(machine, ticket.decode_id, [on_quiet])

    def ready(
        self, transfer_id: str, first_index: int, blocks: list[int], last: bool, first_tokens: list[int], at: float
    ) -> None:
        """Blocks of a push became final at time `at`. An unknown transfer has ended: nothing to do."""
        push = self._pushes.get(transfer_id)
        if push is not None:
            push.last_token_at = at
            push.machine.ready(first_index, blocks, last, first_tokens)

    def abort(self, transfer_id: str, on_quiet: Callable[[Pushed], None]) -> None:
        """Post nothing more for a transfer, now or ever; `on_quiet` as for `push`, at once if it is quiet already."""
        self._spend(transfer_id)
        push = self._pushes.get(transfer_id)
        if push is None:
            on_quiet(Pushed(EndReason.ABORTED))
            return
        push.on_quiet.append(on_quiet)
        push.machine.abort()

    def lose_peer(self, peer_id: str) -> None:
        """The peer's process is gone: its transfers end and are quiet."""
        for push in self._pushes.values():
            if push.peer_id == peer_id:
                push.machine.peer_lost()
                for write in push.writes.values():
                    self._release(write.handle)
                push.writes.clear()
        self._agent.remove_peer(peer_id)

    def step(self) -> bool:
        """One turn for every push. True: something was done, and another turn may do more at once."""
        worked = False
        for push in list(self._pushes.values()):
            worked |= self._poll(push)
            worked |= self._advance(push)
        self._finish_quiet()
        return worked

    def _poll(self, push: _Push) -> bool:
        done = False
        for write_id in list(push.writes):
            done |= write_id in push.writes and self._poll_write(push, write_id)
        return done

    def _poll_write(self, push: _Push, write_id: int) -> bool:
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
        del push.writes[write_id]
        self._release(write.handle)
        push.last_done_at = self._clock()
        if not push.writes:
            push.busy_seconds += push.last_done_at - push.busy_since
        return True

    def _advance(self, push: _Push) -> bool:
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

    def _post(self, push: _Push, post: Post) -> None:
        now = self._clock()
        handle = self._agent.post_write(push.peer_id, post.pairs)
        if push.first_post_at is None:
            push.first_post_at = now
        if not push.writes:
            push.busy_since = now
        # Checksums after the post: where it is asynchronous they cost no time of the transfer.
        sums = checksums(self._pool, [block for block, _ in post.pairs])
        push.writes[post.write_id] = _Write(handle, sums, len(sums) * self._block_bytes)
        self._poll_write(push, post.write_id)

    def _notify(self, push: _Push, notify: Notify) -> None:
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
        self._agent.send_notification(push.peer_id, msgspec.msgpack.encode(delivery))
        push.machine.notified()

    def _finish_quiet(self) -> None:
        for transfer_id, push in list(self._pushes.items()):
            if not push.machine.quiet:
                continue
            del self._pushes[transfer_id]
            self._spend(transfer_id)
            outcome = push.outcome()
            if outcome.end is not EndReason.ABORTED:
                self._counters.count(outcome.num_bytes, outcome.seconds, failed=outcome.end is not EndReason.DELIVERED)
            if outcome.num_bytes and push.busy_seconds > 0:
                self._counters.measure(outcome.num_bytes / push.busy_seconds)
            for on_quiet in push.on_quiet:
                on_quiet(outcome)

    def _spend(self, transfer_id: str) -> None:
        self._spent[transfer_id] = None
        if len(self._spent) > MAX_SPENT:
            self._spent.popitem(last=False)

    def _release(self, handle: int) -> None:
        try:
            self._agent.release(handle)
        except TransferError as error:
            log.warning("a transfer handle could not be released: %s", error)
