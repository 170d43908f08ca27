"""Decode's side of one transfer: a promise of blocks that waits for exactly one delivery.

    waiting ──accept──► ACCEPTED ──damaged──► DAMAGED      the bytes do not match their checksums
       ├──accept, what the promised peer says is not what was promised──► REFUSED
       └──give_up──► FORGOTTEN, EXPIRED, PEER_LOST

Blocks may be verified before the delivery, as the peer says that they are written: what was right then and is in the
delivery with the same checksum is not read again. (From then on a block is as safe, or not, as after its delivery:
only its own transfer writes into it.)

A delivery that names another transfer, generation or incarnation is refused. If it comes from somebody else, the right
one may still follow, so the promise stays. If the promised peer itself says something wrong, nothing better will follow
(what it sends again is the same), so the promise ends and decode can act at once.

Knows no clock, thread, agent, memory or checksum algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from diptych.messages import Delivery, Slot, Written


class IncomingEnd(StrEnum):
    """Why a promise ended. A closed set: it is a metric's label."""

    ACCEPTED = "accepted"
    DAMAGED = "damaged"  # the promised delivery, but bytes that do not match its checksums
    REFUSED = "refused"  # the promised peer delivered something else
    FORGOTTEN = "forgotten"  # its request ended first
    EXPIRED = "expired"  # nothing came by the request's deadline
    PEER_LOST = "peer_lost"  # the promised peer is proven dead


class Refusal(StrEnum):
    """Why a delivery, or the receipt for one, was not accepted. A closed set: it is a metric's label."""

    MALFORMED = "malformed"  # unreadable, or altered on its way
    UNKNOWN_TRANSFER = "unknown_transfer"  # never promised, or ended here since
    WRONG_DECODE = "wrong_decode"  # meant for, or not from, this incarnation
    WRONG_PREFILL = "wrong_prefill"  # not from the worker the blocks were promised to
    WRONG_SLOTS = "wrong_slots"  # other blocks, another order or another generation
    WRONG_CHECKSUMS = "wrong_checksums"  # not one entry for each slot
    TOO_FEW_CHECKSUMS = "too_few_checksums"  # fewer blocks were checksummed than this worker demands
    WRONG_CHOICES = "wrong_choices"  # not one first token for each choice
    DAMAGED = "damaged"  # bytes that do not match their checksums
    DUPLICATE = "duplicate"  # acted on before

    @property
    def ends_the_promise(self) -> bool:
        """The promised peer said it, and will not say anything better."""
        return self in _FINAL

    @property
    def writes_over(self) -> bool:
        """It proves that nothing of the transfer can land any more: the peer named our slots and said it is done."""
        return self in _FINAL and self is not Refusal.WRONG_SLOTS


_FINAL = frozenset(
    {
        Refusal.WRONG_SLOTS,
        Refusal.WRONG_CHECKSUMS,
        Refusal.TOO_FEW_CHECKSUMS,
        Refusal.WRONG_CHOICES,
        Refusal.DAMAGED,
    }
)


class IncomingTransfer:
    """One promise of a decode worker's slots."""

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
        self.prefill_id = prefill_id
        self.slots = tuple(slots)
        self.end: IncomingEnd | None = None  # None: waiting
        self.refusal: Refusal | None = None  # why REFUSED or DAMAGED
        self.verified: dict[int, int] = {}  # index of a slot: the checksum its bytes had, before the delivery
        self._decode_id = decode_id
        self._num_choices = num_choices

    @property
    def accepted(self) -> bool:
        return self.end is IncomingEnd.ACCEPTED

    def accept(self, delivery: Delivery, sender: str, min_checked: int = 0) -> Refusal | None:
        """Take the delivery (None) or say why not.

        Args:
            sender: who the transport says sent it.
            min_checked: blocks that must have been checksummed.
        """
        refusal = self._not_ours(delivery, sender) or self._late() or self._not_promised(delivery, min_checked)
        if refusal is None:
            self.end = IncomingEnd.ACCEPTED
        elif self.end is None and refusal.ends_the_promise:
            self.end, self.refusal = IncomingEnd.REFUSED, refusal
        return refusal

    def refuse_early(self, written: Written, sender: str) -> Refusal | None:
        """Whether blocks that are said to be there may be verified (None). It never ends the promise."""
        refusal = self._not_ours(written, sender) or self._late()
        if refusal is not None:
            return refusal
        last = written.first_index + len(written.slots)
        if written.first_index < 0 or self.slots[written.first_index : last] != tuple(written.slots):
            return Refusal.WRONG_SLOTS
        return None if len(written.checksums) == len(written.slots) else Refusal.WRONG_CHECKSUMS

    def damaged(self) -> None:
        """The bytes of the delivery just accepted do not match its checksums."""
        if self.end is not IncomingEnd.ACCEPTED:
            raise RuntimeError(f"transfer {self.transfer_id} is {self.end or 'waiting'}, so it has no bytes to judge")
        self.end, self.refusal = IncomingEnd.DAMAGED, Refusal.DAMAGED

    def give_up(self, end: IncomingEnd) -> None:
        """Stop waiting: FORGOTTEN, EXPIRED or PEER_LOST. Nothing is accepted from now on. Idempotent."""
        self.end = self.end or end

    def check(self) -> None:
        """Assert the invariants."""
        assert (self.refusal is None) == (self.end not in (IncomingEnd.REFUSED, IncomingEnd.DAMAGED))
        assert self.refusal is None or self.refusal.ends_the_promise
        assert (self.refusal is Refusal.DAMAGED) == (self.end is IncomingEnd.DAMAGED)

    def _not_ours(self, delivery: Delivery | Written, sender: str) -> Refusal | None:
        if delivery.transfer_id != self.transfer_id:
            return Refusal.UNKNOWN_TRANSFER
        if delivery.decode_id != self._decode_id:
            return Refusal.WRONG_DECODE
        if delivery.prefill_id != self.prefill_id or sender != self.prefill_id:
            return Refusal.WRONG_PREFILL
        return None

    def _late(self) -> Refusal | None:
        if self.end is None:
            return None
        return Refusal.DUPLICATE if self.end is IncomingEnd.ACCEPTED or self.refusal else Refusal.UNKNOWN_TRANSFER

    def _not_promised(self, delivery: Delivery, min_checked: int) -> Refusal | None:
        if tuple(delivery.slots) != self.slots:
            return Refusal.WRONG_SLOTS
        if len(delivery.checksums) != len(self.slots):
            return Refusal.WRONG_CHECKSUMS
        if sum(checksum is not None for checksum in delivery.checksums) < min_checked:
            return Refusal.TOO_FEW_CHECKSUMS
        if self._num_choices is not None and len(delivery.first_tokens) != self._num_choices:
            return Refusal.WRONG_CHOICES
        return None
