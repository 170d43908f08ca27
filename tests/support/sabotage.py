"""Ways to spoil a transfer between a pusher and its agent, each on purpose, once, and with what must be noticed.

`Saboteur` stands in front of any agent, real or fake: what it does to blocks it does with real writes, through a
scratch block or to another target. What it does to a message it seals again, unless altering the sealed bytes is the
point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import TypeVar

import numpy as np
from msgspec.structs import replace

from diptych.messages import Delivery, PeerHello, Slot, Written
from kv_transfer.agent import BlockPair, TransferAgent, WriteState
from kv_transfer.checksum import Pool
from kv_transfer.incoming import Refusal
from kv_transfer.notification import seal, unseal

Pairs = list[BlockPair]
Message = TypeVar("Message", Delivery, Written)


class Outcome(Enum):
    """How a transfer must end when it was spoiled."""

    DAMAGED = "its bytes are refused"
    REFUSED = "its delivery is refused, for good"
    REPAIRED = "something is refused, and the delivery that is sent again is taken"
    UNHARMED = "it is taken, once"


@dataclass
class Job:
    """One transfer, as whoever spoils it sees it."""

    transfer_id: str
    sources: list[int]
    targets: list[int]
    scratch: int  # a block of the source pool for altered copies
    spare: int  # a block of the target pool that holds nothing of value
    sabotage: Sabotage | None = None
    injected: bool = False


@dataclass(frozen=True)
class Sabotage:
    name: str
    outcome: Outcome
    reason: Refusal | None  # what the receiver must have counted
    blocks: Callable[[Saboteur, Job, Pairs], Pairs | None] | None = None  # None: not possible with this write
    message: Callable[[Saboteur, Delivery], Sequence[bytes]] | None = None
    early: Callable[[Saboteur, Written], Sequence[bytes]] | None = None
    min_blocks: int = 1


@dataclass
class Saboteur:
    """A `TransferAgent`."""

    inner: TransferAgent
    source: Pool
    target: Pool  # the peer's, to know what lies where a block should arrive
    random: Random
    jobs: dict[str, Job] = field(default_factory=dict)
    by_source: dict[int, Job] = field(default_factory=dict)
    old_deliveries: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def add(self, job: Job) -> None:
        self.jobs[job.transfer_id] = job
        self.by_source |= dict.fromkeys(job.sources, job)

    def remove(self, job: Job) -> None:
        del self.jobs[job.transfer_id]
        for source in job.sources:
            del self.by_source[source]

    def post_write(self, peer_id: str, pairs: Sequence[BlockPair], notification: bytes | None = None) -> int:
        job = self.by_source[pairs[0][0]]
        if job.sabotage is not None and job.sabotage.blocks is not None and not job.injected:
            altered = job.sabotage.blocks(self, job, list(pairs))
            job.injected = altered is not None
            pairs = altered or pairs
        return self.inner.post_write(peer_id, pairs, notification)

    def send_notification(self, peer_id: str, payload: bytes) -> None:
        for each in self._altered(payload):
            self.inner.send_notification(peer_id, each)

    def metadata(self) -> bytes:
        return self.inner.metadata()

    def add_peer(self, hello: PeerHello) -> None:
        self.inner.add_peer(hello)

    def remove_peer(self, peer_id: str) -> None:
        self.inner.remove_peer(peer_id)

    def poll(self, handle: int) -> WriteState:
        return self.inner.poll(handle)

    def release(self, handle: int) -> None:
        self.inner.release(handle)

    def take_notifications(self) -> list[tuple[str, bytes]]:
        return self.inner.take_notifications()

    def close(self) -> None:
        self.inner.close()

    def copy_altered(self, job: Job, block: int, alter: Callable[[Pool], None]) -> int | None:
        """The scratch block with an altered copy of `block`; None if nothing changed."""
        self.source[job.scratch] = self.source[block]
        alter(self.source[job.scratch])
        return job.scratch if (self.source[job.scratch] != self.source[block]).any() else None

    def _altered(self, payload: bytes) -> Sequence[bytes]:
        if len(payload) < 2:  # a warm-up
            return [payload]
        message = unseal(payload)
        if not isinstance(message, Delivery | Written):
            return [payload]
        job = self.jobs[message.transfer_id]
        if isinstance(message, Written):
            if job.sabotage is None or job.sabotage.early is None or job.injected:
                return [payload]
            job.injected = True
            return job.sabotage.early(self, message)
        if job.sabotage is None or job.sabotage.message is None or job.injected:
            self.old_deliveries.append(payload)
            return [payload]
        job.injected = True
        return job.sabotage.message(self, message)


# --- what can happen to blocks --------------------------------------------------------------------------------------


def _one(alter: Callable[[Saboteur, Pool, int], None]) -> Callable[[Saboteur, Job, Pairs], Pairs | None]:
    """Alter one block of a write: given its copy and its target."""

    def blocks(saboteur: Saboteur, job: Job, pairs: Pairs) -> Pairs | None:
        which = saboteur.random.randrange(len(pairs))
        source, target = pairs[which]
        copy = saboteur.copy_altered(job, source, lambda block: alter(saboteur, block, target))
        return None if copy is None else [*pairs[:which], (copy, target), *pairs[which + 1 :]]

    return blocks


def _flip(saboteur: Saboteur, block: Pool, target: int) -> None:
    bit = saboteur.random.randrange(8 * len(block))
    block[bit // 8] ^= 1 << bit % 8


def _zero_tail(saboteur: Saboteur, block: Pool, target: int) -> None:
    block[saboteur.random.randrange(len(block)) :] = 0


def _truncate(saboteur: Saboteur, block: Pool, target: int) -> None:
    """The rest never arrives: what lay there before stays."""
    length = saboteur.random.randrange(len(block))
    block[length:] = saboteur.target[target, length:]


def _anothers(saboteur: Saboteur, block: Pool, target: int) -> None:
    block[:] = saboteur.source[saboteur.random.randrange(len(saboteur.source))]


def _swap(saboteur: Saboteur, job: Job, pairs: Pairs) -> Pairs | None:
    if len(pairs) < 2:
        return None
    a, b = saboteur.random.sample(range(len(pairs)), 2)
    swapped = list(pairs)
    swapped[a], swapped[b] = (pairs[a][0], pairs[b][1]), (pairs[b][0], pairs[a][1])
    return swapped


def _misplace(saboteur: Saboteur, job: Job, pairs: Pairs) -> Pairs | None:
    """One block lands elsewhere; where it belongs lies what lay there before."""
    which = saboteur.random.randrange(len(pairs))
    source, target = pairs[which]
    if np.array_equal(saboteur.source[source], saboteur.target[target]):
        return None
    return [*pairs[:which], (source, job.spare), *pairs[which + 1 :]]


def _misplace_over_verified(saboteur: Saboteur, job: Job, pairs: Pairs) -> Pairs | None:
    """One block lands on another of its transfer that may have been verified already."""
    earlier = job.targets[: job.targets.index(pairs[0][1])]
    which = saboteur.random.randrange(len(pairs))
    source, target = pairs[which]
    if not earlier or np.array_equal(saboteur.source[source], saboteur.target[target]):
        return None
    return [*pairs[:which], (source, saboteur.random.choice(earlier)), *pairs[which + 1 :]]


# --- what can happen to a delivery ----------------------------------------------------------------------------------


def _says(alter: Callable[[Random, Delivery], Delivery]) -> Callable[[Saboteur, Delivery], Sequence[bytes]]:
    return lambda saboteur, delivery: [seal(alter(saboteur.random, delivery))]


def _stale_generation(random: Random, message: Message) -> Message:
    slots = list(message.slots)
    which = random.randrange(len(slots))
    slots[which] = Slot(slots[which].block, slots[which].generation - 1)
    return replace(message, slots=slots)


def _reorder(random: Random, delivery: Delivery) -> Delivery:
    return replace(delivery, slots=delivery.slots[1:] + delivery.slots[:1])


def _withhold_checksum(random: Random, delivery: Delivery) -> Delivery:
    checksums = list(delivery.checksums)
    checksums[random.randrange(len(checksums))] = None
    return replace(delivery, checksums=checksums)


def _garble(saboteur: Saboteur, delivery: Delivery | Written) -> Sequence[bytes]:
    payload = bytearray(seal(delivery))
    bit = saboteur.random.randrange(8 * len(payload))
    payload[bit // 8] ^= 1 << bit % 8
    return [bytes(payload)]


def _cut(saboteur: Saboteur, delivery: Delivery) -> Sequence[bytes]:
    payload = seal(delivery)
    return [payload[: saboteur.random.randrange(2, len(payload))]]


def _preceded_by_an_old_one(saboteur: Saboteur, delivery: Delivery) -> Sequence[bytes]:
    old = saboteur.random.choice(saboteur.old_deliveries) if saboteur.old_deliveries else seal(delivery)
    return [old, seal(delivery)]


SABOTAGES = (
    Sabotage("bit flip", Outcome.DAMAGED, Refusal.DAMAGED, _one(_flip)),
    Sabotage("zeroed tail", Outcome.DAMAGED, Refusal.DAMAGED, _one(_zero_tail)),
    Sabotage("truncated block", Outcome.DAMAGED, Refusal.DAMAGED, _one(_truncate)),
    Sabotage("another's block", Outcome.DAMAGED, Refusal.DAMAGED, _one(_anothers)),
    Sabotage("swapped blocks", Outcome.DAMAGED, Refusal.DAMAGED, _swap, min_blocks=2),
    Sabotage("misplaced block", Outcome.DAMAGED, Refusal.DAMAGED, _misplace),
    Sabotage("misplaced over a verified one", Outcome.DAMAGED, Refusal.DAMAGED, _misplace_over_verified, min_blocks=3),
    Sabotage("early word lost", Outcome.UNHARMED, None, early=lambda saboteur, written: [], min_blocks=3),
    Sabotage("early word garbled", Outcome.UNHARMED, Refusal.MALFORMED, early=_garble, min_blocks=3),
    Sabotage("early word with other checksums", Outcome.UNHARMED, None, min_blocks=3,
             early=lambda saboteur, written: [seal(replace(written, checksums=[1] * len(written.checksums)))]),
    Sabotage("early word about a stale generation", Outcome.UNHARMED, Refusal.WRONG_SLOTS, min_blocks=3,
             early=lambda saboteur, written: [seal(_stale_generation(saboteur.random, written))]),
    Sabotage("early word with a checksum less", Outcome.UNHARMED, Refusal.WRONG_CHECKSUMS, min_blocks=3,
             early=lambda saboteur, written: [seal(replace(written, checksums=written.checksums[:-1]))]),
    Sabotage("early word from another incarnation", Outcome.UNHARMED, Refusal.WRONG_PREFILL, min_blocks=3,
             early=lambda saboteur, written: [seal(replace(written, prefill_id=written.prefill_id + "0"))]),
    Sabotage("stale generation", Outcome.REFUSED, Refusal.WRONG_SLOTS, message=_says(_stale_generation)),
    Sabotage("slots in another order", Outcome.REFUSED, Refusal.WRONG_SLOTS, message=_says(_reorder), min_blocks=2),
    Sabotage("a slot less", Outcome.REFUSED, Refusal.WRONG_SLOTS,
             message=_says(lambda random, delivery: replace(delivery, slots=delivery.slots[:-1]))),
    Sabotage("a checksum less", Outcome.REFUSED, Refusal.WRONG_CHECKSUMS,
             message=_says(lambda random, delivery: replace(delivery, checksums=delivery.checksums[:-1]))),
    Sabotage("a block unchecked", Outcome.REFUSED, Refusal.TOO_FEW_CHECKSUMS, message=_says(_withhold_checksum)),
    Sabotage("a choice too many", Outcome.REFUSED, Refusal.WRONG_CHOICES,
             message=_says(lambda random, delivery: replace(delivery, first_tokens=[1, 2]))),
    Sabotage("wrong decode incarnation", Outcome.REPAIRED, Refusal.WRONG_DECODE,
             message=_says(lambda random, delivery: replace(delivery, decode_id=delivery.decode_id + "0"))),
    Sabotage("wrong prefill incarnation", Outcome.REPAIRED, Refusal.WRONG_PREFILL,
             message=_says(lambda random, delivery: replace(delivery, prefill_id=delivery.prefill_id + "0"))),
    Sabotage("garbled delivery", Outcome.REPAIRED, Refusal.MALFORMED, message=_garble),
    Sabotage("cut delivery", Outcome.REPAIRED, Refusal.MALFORMED, message=_cut),
    Sabotage("lost delivery", Outcome.REPAIRED, None, message=lambda saboteur, delivery: []),
    Sabotage("duplicated delivery", Outcome.UNHARMED, Refusal.DUPLICATE,
             message=lambda saboteur, delivery: [seal(delivery)] * 2),
    Sabotage("old delivery again", Outcome.UNHARMED, Refusal.DUPLICATE, message=_preceded_by_an_old_one),
)  # fmt: skip
