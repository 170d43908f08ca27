"""The life of one transfer, on both sides, as pure state machines.

Prefill's side, `OutgoingTransfer`: blocks become ready in order, are written in pieces, and when the last write is
done a notification follows. Its shell asks `advance(now)` what to do, does it at once, and reports what came of it:

    ready(blocks…)──► advance ──► Post ──► write_done / write_failed ──► … ──► Notify ──► notified ──► DELIVERED
    abort, deadline, peer lost ──► nothing more is posted; `quiet` once every posted write is terminal

A write cannot be cancelled (field of NIXL), so an ended transfer that still has writes in flight is not quiet: until it
is, nobody may reuse the blocks it writes into.

Decode's side, `IncomingTransfer`: one delivery is accepted, and only if it is exactly the promised one.

Knows no clock, thread, agent, memory or checksum algorithm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from diptych.messages import Delivery, Slot
from kv_transfer.agent import BlockPair

MAX_BLOCKS_PER_WRITE = 16  # bounds how long one synchronous copy holds the transfer thread: ~2 ms of 737 kB blocks
MAX_WRITES_IN_FLIGHT = 4  # keeps an asynchronous transport busy, and leaves little to wait for after an abort


class EndReason(StrEnum):
    """Why an outgoing transfer ended."""

    DELIVERED = "delivered"
    ABORTED = "aborted"
    EXPIRED = "expired"  # the ticket ran out
    WRITE_FAILED = "write_failed"
    PEER_LOST = "peer_lost"
    BROKEN = "broken"  # the engine's blocks do not fit the ticket


class Refusal(StrEnum):
    """Why a delivery was not accepted. A closed set: it is a metric's label."""

    MALFORMED = "malformed"
    UNKNOWN_TRANSFER = "unknown_transfer"
    WRONG_DECODE = "wrong_decode"  # meant for another incarnation
    WRONG_PREFILL = "wrong_prefill"  # not from the worker the blocks were promised to
    WRONG_SLOTS = "wrong_slots"  # other blocks, another order or another generation
    WRONG_CHECKSUMS = "wrong_checksums"  # not one for each slot
    WRONG_CHOICES = "wrong_choices"  # not one first token for each choice
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Post:
    """Write these blocks; report `write_done` or `write_failed` with the id."""

    write_id: int
    pairs: tuple[BlockPair, ...]


@dataclass(frozen=True, slots=True)
class Notify:
    """Every block is at the peer: tell it. Report `notified` or `write_failed` with `write_id` None."""

    slots: tuple[Slot, ...]
    checksums: tuple[int, ...]
    first_tokens: tuple[int, ...]


class OutgoingTransfer:
    """One push from a prefill worker into the slots of a ticket."""

    def __init__(self, transfer_id: str, slots: Sequence[Slot], first_block: int, deadline: float) -> None:
        """
        Args:
            slots: decode's, for prompt blocks first_block.., in order.
            deadline: on the clock of `advance`; nothing is posted from then on.
        """
        self.transfer_id = transfer_id
        self.deadline = deadline
        self.end: EndReason | None = None
        self._slots = tuple(slots)
        self._first_block = first_block
        self._pairs: deque[BlockPair] = deque()  # ready, not posted
        self._num_ready = 0
        self._complete = False  # the prompt's last block is ready
        self._first_tokens: tuple[int, ...] = ()
        self._in_flight: dict[int, int] = {}  # write id -> index of its first slot
        self._num_posted = 0  # blocks
        self._next_write_id = 0
        self._checksums: list[int | None] = [None] * len(self._slots)
        self._notifying = False

    @property
    def quiet(self) -> bool:
        """Ended, and nothing of it can still land at the peer."""
        return self.end is not None and not self._in_flight

    @property
    def busy(self) -> bool:
        """`advance` may have something to do, or a posted write wants polling."""
        return bool(self._in_flight or self._pairs or self._complete) and not self.quiet

    @property
    def writes_in_flight(self) -> tuple[int, ...]:
        return tuple(self._in_flight)

    def ready(self, first_index: int, blocks: Sequence[int], last: bool, first_tokens: Sequence[int] = ()) -> None:
        """Prompt blocks first_index.. are final, in the local `blocks`; with the `last` come the first tokens."""
        if self.end is not None:
            return
        num_ready = self._num_ready + len(blocks)
        in_order = first_index == self._first_block + self._num_ready and not self._complete
        if not in_order or num_ready > len(self._slots) or (last and num_ready != len(self._slots)):
            self.end = EndReason.BROKEN
            return
        self._pairs.extend(
            (block, slot.block) for block, slot in zip(blocks, self._slots[self._num_ready :], strict=False)
        )
        self._num_ready = num_ready
        self._complete = last
        self._first_tokens = tuple(first_tokens)

    def advance(self, now: float) -> Post | Notify | None:
        """The next thing to do, at once. None: nothing until another event."""
        if self.end is None and now >= self.deadline:
            self.end = EndReason.EXPIRED
        if self.end is not None or self._notifying:
            return None
        if self._pairs:
            return self._post() if len(self._in_flight) < MAX_WRITES_IN_FLIGHT else None
        if self._complete and not self._in_flight:
            self._notifying = True
            checksums = tuple(checksum for checksum in self._checksums if checksum is not None)
            return Notify(self._slots, checksums, self._first_tokens)
        return None

    def write_done(self, write_id: int, checksums: Sequence[int]) -> None:
        """A posted write is in the peer's memory; `checksums` of its blocks, in order."""
        start = self._in_flight.pop(write_id)
        self._checksums[start : start + len(checksums)] = checksums

    def write_failed(self, write_id: int | None) -> None:
        """A write is terminal without success, or could not be posted; None: the notification could not be sent."""
        if write_id is not None:
            self._in_flight.pop(write_id)
        self.end = self.end or EndReason.WRITE_FAILED

    def notified(self) -> None:
        self.end = self.end or EndReason.DELIVERED

    def abort(self) -> None:
        """Post nothing more. Idempotent."""
        self.end = self.end or EndReason.ABORTED

    def peer_lost(self) -> None:
        """The peer's process is gone, and its memory with it: every write is terminal."""
        self._in_flight.clear()
        self.end = self.end or EndReason.PEER_LOST

    def check(self) -> None:
        """Assert the invariants."""
        assert self._num_posted + len(self._pairs) == self._num_ready <= len(self._slots)
        assert len(self._in_flight) <= MAX_WRITES_IN_FLIGHT
        assert not self._notifying or not (self._pairs or self._in_flight)
        if self.end is EndReason.DELIVERED:
            assert self._complete
            assert None not in self._checksums

    def _post(self) -> Post:
        pairs = tuple(self._pairs.popleft() for _ in range(min(MAX_BLOCKS_PER_WRITE, len(self._pairs))))
        write_id = self._next_write_id
        self._next_write_id += 1
        self._in_flight[write_id] = self._num_posted
        self._num_posted += len(pairs)
        return Post(write_id, pairs)


class IncomingTransfer:
    """One promise of a decode worker's slots, waiting for its delivery."""

    def __init__(
        self,
        transfer_id: str,
        decode_id: str,
        prefill_id: str,
        slots: Sequence[Slot],
        num_choices: int | None = None,
    ) -> None:
        """
        Args:
            num_choices: first tokens the delivery must hold; None: any number.
        """
        self.transfer_id = transfer_id
        self.slots = tuple(slots)
        self.accepted = False
        self._decode_id = decode_id
        self._prefill_id = prefill_id
        self._num_choices = num_choices

    def accept(self, delivery: Delivery, sender: str) -> Refusal | None:
        """Take the delivery (None) or say why not. `sender` is who the transport says sent it."""
        refusal = self._refusal(delivery, sender)
        if refusal is None:
            self.accepted = True
        return refusal

    def _refusal(self, delivery: Delivery, sender: str) -> Refusal | None:
        if delivery.transfer_id != self.transfer_id:
            return Refusal.UNKNOWN_TRANSFER
        if delivery.decode_id != self._decode_id:
            return Refusal.WRONG_DECODE
        if delivery.prefill_id != self._prefill_id or sender != self._prefill_id:
            return Refusal.WRONG_PREFILL
        if tuple(delivery.slots) != self.slots:
            return Refusal.WRONG_SLOTS
        if len(delivery.checksums) != len(self.slots):
            return Refusal.WRONG_CHECKSUMS
        if self._num_choices is not None and len(delivery.first_tokens) != self._num_choices:
            return Refusal.WRONG_CHOICES
        if self.accepted:
            return Refusal.DUPLICATE
        return None
