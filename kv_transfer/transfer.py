"""The life of one transfer, on both sides, as pure state machines.

Prefill's side, `OutgoingTransfer`: blocks become ready in order, are written in pieces, and when the last write is
done a delivery follows. Its shell asks `advance(now)` what to do, does it at once, and reports what came of it:

    ready(blocks…)──► advance ──► Post ──► write_done / write_failed ──► … ──► Notify ──► notified
                                                                                ▲            │ no receipt in time
                                                                                └────────────┤
                                                       DELIVERED, REFUSED ◄── receipt ───────┘
    abort, deadline, peer lost ──► nothing more is posted; `quiet` once every posted write is terminal

A notification may be lost, so the delivery is sent again until decode's receipt is here or the deadline; decode acts on
it once and answers every copy. (Where receipts are off, a delivery is over when it is sent.)

A write cannot be cancelled (field of NIXL), so an ended transfer that still has writes in flight is not quiet: until it
is, nobody may reuse the blocks it writes into. A write that *failed* is no better than one in flight: NIXL's UCX
backend posts a list block by block and, when one fails, lets go of the others without waiting for them
(`nixlUcxEngine::sendXferRange`, `nixlUcxBackendReqH::release`). Such a transfer is not `settled`: only the end of one
of the two processes proves that nothing of it will land.

Decode's side, `IncomingTransfer` (`kv_transfer.incoming`): one delivery is accepted, and only exactly the promised one.

Knows no clock, thread, agent, memory or checksum algorithm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from diptych.messages import Slot
from kv_transfer.agent import BlockPair
from kv_transfer.incoming import IncomingEnd, IncomingTransfer, Refusal

__all__ = ["EndReason", "IncomingEnd", "IncomingTransfer", "Notify", "OutgoingTransfer", "Post", "Refusal"]

MAX_BLOCKS_PER_WRITE = 16  # bounds how long one synchronous copy holds the transfer thread: ~2 ms of 737 kB blocks
MAX_WRITES_IN_FLIGHT = 4  # keeps an asynchronous transport busy, and leaves little to wait for after an abort
RESEND_S = 0.25  # far above a round trip and a verification, far below a deadline
LONGEST_RESEND_S = 2.0  # it doubles up to this: a stopped peer finds few copies when it goes on


class EndReason(StrEnum):
    """Why an outgoing transfer ended. A closed set: it is a metric's label."""

    DELIVERED = "delivered"
    REFUSED = "refused"  # decode has the delivery and will not use it
    UNACKNOWLEDGED = "unacknowledged"  # all was sent, and no receipt came by the deadline
    ABORTED = "aborted"
    EXPIRED = "expired"  # the ticket ran out
    WRITE_FAILED = "write_failed"
    PEER_LOST = "peer_lost"
    BROKEN = "broken"  # the engine's blocks do not fit the ticket


@dataclass(frozen=True, slots=True)
class Post:
    """Write these blocks; report `write_done` or `write_failed` with the id."""

    write_id: int
    first_index: int  # of the first pair's slot among the ticket's slots
    pairs: tuple[BlockPair, ...]


@dataclass(frozen=True, slots=True)
class Notify:
    """Every block is at the peer: tell it, maybe again. Report `notified` or `write_failed` with `write_id` None."""

    slots: tuple[Slot, ...]
    checksums: tuple[int | None, ...]  # None: not checksummed
    first_tokens: tuple[int, ...]


class OutgoingTransfer:
    """One push from a prefill worker into the slots of a ticket."""

    def __init__(
        self,
        transfer_id: str,
        slots: Sequence[Slot],
        first_block: int,
        deadline: float,
        acknowledged: bool = False,
    ) -> None:
        """
        Args:
            slots: decode's, for prompt blocks first_block.., in order.
            deadline: on the clock of `advance`, seconds; nothing is posted from then on.
            acknowledged: decode answers deliveries: DELIVERED means received. Else it means sent.
        """
        self.transfer_id = transfer_id
        self.deadline = deadline
        self.end: EndReason | None = None
        self.refusal: Refusal | None = None  # why REFUSED
        self.settled = True  # False: a write failed over a connection that lives, so bytes of it may still land
        self.num_sent = 0  # copies of the delivery
        self.slots = tuple(slots)
        self._first_block = first_block
        self._pairs: deque[BlockPair] = deque()  # ready, not posted
        self._num_ready = 0
        self._complete = False  # the prompt's last block is ready
        self._first_tokens: tuple[int, ...] = ()
        self._in_flight: dict[int, int] = {}  # write id -> index of its first slot
        self._num_posted = 0  # blocks
        self._next_write_id = 0
        self._checksums: list[int | None] = [None] * len(self.slots)
        self._num_written = 0  # blocks
        self._acknowledged = acknowledged
        self._notify_at = -inf  # when the next copy is due, on the clock of `advance`
        self._resend_s = RESEND_S

    @property
    def quiet(self) -> bool:
        """Ended, and every write is terminal. If it is `settled` too, nothing of it can still land at the peer."""
        return self.end is not None and not self._in_flight

    @property
    def busy(self) -> bool:
        """`advance` may have something to do, a posted write wants polling, or a receipt is about to come."""
        fresh = self._complete and self.num_sent <= 1  # later copies keep no thread awake
        return bool(self._in_flight or self._pairs or fresh) and not self.quiet

    @property
    def delivery_due(self) -> bool:
        """Every block is at the peer."""
        return self._complete and not self._pairs and not self._in_flight

    @property
    def writes_in_flight(self) -> tuple[int, ...]:
        return tuple(self._in_flight)

    def ready(self, first_index: int, blocks: Sequence[int], last: bool, first_tokens: Sequence[int] = ()) -> None:
        """Prompt blocks first_index.. are final, in the local `blocks`; with the `last` come the first tokens."""
        if self.end is not None:
            return
        num_ready = self._num_ready + len(blocks)
        in_order = first_index == self._first_block + self._num_ready and not self._complete
        if not in_order or num_ready > len(self.slots) or (last and num_ready != len(self.slots)):
            self.end = EndReason.BROKEN
            return
        self._pairs.extend(
            (block, slot.block) for block, slot in zip(blocks, self.slots[self._num_ready :], strict=False)
        )
        self._num_ready = num_ready
        self._complete = last
        self._first_tokens = tuple(first_tokens)

    def advance(self, now: float) -> Post | Notify | None:
        """The next thing to do, at once. None: nothing until another event."""
        if self.end is None and now >= self.deadline:
            self.end = EndReason.UNACKNOWLEDGED if self.num_sent else EndReason.EXPIRED
        if self.end is not None:
            return None
        if self._pairs:
            return self._post() if len(self._in_flight) < MAX_WRITES_IN_FLIGHT else None
        if self.delivery_due and now >= self._notify_at:
            return Notify(self.slots, tuple(self._checksums), self._first_tokens)
        return None

    def write_done(self, write_id: int, checksums: Sequence[int | None]) -> None:
        """A posted write is in the peer's memory; `checksums` of its blocks, in order, None where not taken."""
        start = self._in_flight.pop(write_id)
        self._checksums[start : start + len(checksums)] = checksums
        self._num_written += len(checksums)

    def write_failed(self, write_id: int | None) -> None:
        """A write ended without success, or could not be posted; None: the notification could not be sent."""
        if write_id is not None:
            self._in_flight.pop(write_id)
            self.settled = False
        self.end = self.end or EndReason.WRITE_FAILED

    def notified(self, now: float) -> None:
        """A copy of the delivery was sent."""
        self.num_sent += 1
        self._notify_at = now + self._resend_s
        self._resend_s = min(2 * self._resend_s, LONGEST_RESEND_S)
        if not self._acknowledged:
            self.end = self.end or EndReason.DELIVERED

    def receipt(self, refusal: Refusal | None) -> bool:
        """Decode answered: it took the delivery (None) or will not. False: it can have had none to answer."""
        if not self.num_sent:
            return False
        if self.end is None:
            self.end = EndReason.DELIVERED if refusal is None else EndReason.REFUSED
            self.refusal = refusal
        return True

    def abort(self) -> None:
        """Post nothing more. Idempotent."""
        self.end = self.end or EndReason.ABORTED

    def peer_lost(self) -> None:
        """The peer's process is gone, and its memory with it, or the connection to it is: every write is terminal.

        A broken connection sends nothing more. What left before lies in the peer's socket at most; it takes that in
        before it frees a block (`TransferPump.settle`).
        """
        self._in_flight.clear()
        self.end = self.end or EndReason.PEER_LOST

    def check(self) -> None:
        """Assert the invariants."""
        assert self._num_posted + len(self._pairs) == self._num_ready <= len(self.slots)
        assert len(self._in_flight) <= MAX_WRITES_IN_FLIGHT
        assert not self.num_sent or not (self._pairs or self._in_flight)
        assert (self.refusal is not None) == (self.end is EndReason.REFUSED)
        if self.num_sent:
            assert self._complete
            assert self._num_written == len(self.slots)
        if self.end in (EndReason.DELIVERED, EndReason.REFUSED, EndReason.UNACKNOWLEDGED):
            assert self.num_sent

    def _post(self) -> Post:
        pairs = tuple(self._pairs.popleft() for _ in range(min(MAX_BLOCKS_PER_WRITE, len(self._pairs))))
        write_id = self._next_write_id
        self._next_write_id += 1
        first_index = self._num_posted
        self._in_flight[write_id] = first_index
        self._num_posted += len(pairs)
        return Post(write_id, first_index, pairs)
