"""The receiving half of a worker's transfers: checks deliveries against what was promised, and their bytes.

A delivery that is refused is counted by reason and never acted on. Every delivery that names this worker rightly is
answered, copies of old ones included, so that a pusher that lost the answer can stop.

Knows nothing about agents, threads or event loops; the clock is given.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from diptych.messages import Delivery, Receipt, Written
from kv_transfer.checksum import NO_CHECKS, Checks, Pool, checksum
from kv_transfer.incoming import IncomingEnd, IncomingTransfer, Refusal
from kv_transfer.outcome import Arrival, Counters, Missed

log = logging.getLogger(__name__)

MAX_SETTLED = 65_536  # answers remembered; one only matters while its pusher may send a copy, a request's deadline


class Receiver:
    """All incoming transfers of one worker."""

    def __init__(
        self,
        worker_id: str,
        block_bytes: int,
        pool: Pool | None,
        counters: Counters,
        on_arrival: Callable[[Arrival], None],
        on_missed: Callable[[Missed], None],
        clock: Callable[[], float],
        checks: Checks = Checks(),  # noqa: B008 (frozen)
    ) -> None:
        """
        Args:
            pool: None: no checksum is demanded or compared.
            on_missed: called where a transfer that is expected turns out not to come.
        """
        self._worker_id = worker_id
        self._block_bytes = block_bytes
        self._pool = pool
        self._counters = counters
        self._on_arrival = on_arrival
        self._on_missed = on_missed
        self._clock = clock
        self._checks = checks if pool is not None else NO_CHECKS
        self._expected: dict[str, IncomingTransfer] = {}
        self._settled: OrderedDict[str, IncomingTransfer] = OrderedDict()  # accepted, damaged or refused

    @property
    def active(self) -> bool:
        """A delivery is expected."""
        return bool(self._expected)

    def expect(self, incoming: IncomingTransfer) -> None:
        self._expected[incoming.transfer_id] = incoming

    def forget(self, transfer_id: str, end: IncomingEnd = IncomingEnd.FORGOTTEN) -> None:
        """Stop expecting, because the request ended (FORGOTTEN) or its deadline passed (EXPIRED). Idempotent."""
        incoming = self._expected.pop(transfer_id, None)
        if incoming is not None:
            incoming.give_up(end)
            self._counters.incoming[end] += 1

    def lose_peer(self, peer_id: str) -> None:
        """A pusher is proven dead: what it had not delivered will not come."""
        for incoming in [each for each in self._expected.values() if each.prefill_id == peer_id]:
            self.forget(incoming.transfer_id, IncomingEnd.PEER_LOST)
            self._on_missed(Missed(incoming.transfer_id, IncomingEnd.PEER_LOST))

    def receive(self, sender: str, delivery: Delivery) -> Receipt | None:
        """A delivery arrived from peer `sender`. Returns what to answer."""
        arrived_at = self._clock()
        incoming = self._expected.get(delivery.transfer_id) or self._settled.get(delivery.transfer_id)
        if incoming is None:
            return self._refuse(sender, delivery, self._stranger(sender, delivery))
        refusal = incoming.accept(delivery, sender, self._checks.count(len(incoming.slots)))
        if refusal is None:
            return self._verify(incoming, sender, delivery, arrived_at)
        if refusal.ends_the_promise:
            self._settle(incoming)
        receipt = self._refuse(sender, delivery, refusal, incoming.refusal)
        if refusal.ends_the_promise:
            self._on_missed(Missed(delivery.transfer_id, IncomingEnd.REFUSED, refusal, delivery))
        return receipt

    def verify_early(self, sender: str, written: Written) -> None:
        """Blocks of a transfer that goes on are here. What is found wrong now is judged with the delivery."""
        incoming = self._expected.get(written.transfer_id)
        if incoming is None or self._pool is None:  # it ended since
            return
        refusal = incoming.refuse_early(written, sender)
        if refusal is not None:
            self._counters.refused[refusal] += 1
            return
        for index, (slot, there) in enumerate(zip(written.slots, written.checksums, strict=True), written.first_index):
            if there is not None and checksum(self._pool, slot.block) == there:
                incoming.verified[index] = there

    def check(self) -> None:
        """Assert the invariants."""
        for transfer_id, incoming in (*self._expected.items(), *self._settled.items()):
            incoming.check()
            assert incoming.transfer_id == transfer_id
            assert (incoming.end is None) == (transfer_id in self._expected)
        assert not self._expected.keys() & self._settled.keys()

    def _verify(self, incoming: IncomingTransfer, sender: str, delivery: Delivery, arrived_at: float) -> Receipt:
        bad_blocks = self._bad_blocks(incoming, delivery)
        if bad_blocks:
            incoming.damaged()
            self._refuse(sender, delivery, Refusal.DAMAGED)
        self._settle(incoming)
        verify_ms = (self._clock() - arrived_at) * 1_000
        arrival = Arrival(
            delivery=delivery,
            bad_blocks=bad_blocks,
            num_bytes=len(delivery.slots) * self._block_bytes,
            transfer_ms=delivery.first_post_ms + verify_ms,
            exposed_ms=delivery.last_token_ms + verify_ms,
            num_checked=sum(each is not None for each in delivery.checksums),
        )
        self._counters.count(arrival.num_bytes, arrival.transfer_ms / 1_000, failed=bool(bad_blocks))
        self._counters.exposed_transfer_seconds_total += arrival.exposed_ms / 1_000
        self._on_arrival(arrival)
        return self._receipt(delivery, incoming.refusal)

    def _bad_blocks(self, incoming: IncomingTransfer, delivery: Delivery) -> tuple[int, ...]:
        if self._pool is None:
            return ()
        early = incoming.verified
        checked = [
            (index, slot.block, there)
            for index, (slot, there) in enumerate(zip(delivery.slots, delivery.checksums, strict=True))
            if there is not None
        ]
        self._counters.blocks_verified_total += len(checked)
        unsure = [(block, there) for index, block, there in checked if early.get(index) != there]
        self._counters.blocks_verified_early_total += len(checked) - len(unsure)
        return tuple(block for block, there in unsure if checksum(self._pool, block) != there)

    def _settle(self, incoming: IncomingTransfer) -> None:
        del self._expected[incoming.transfer_id]
        assert incoming.end is not None
        self._counters.incoming[incoming.end] += 1
        self._settled[incoming.transfer_id] = incoming
        incoming.verified = {}
        if len(self._settled) > MAX_SETTLED:
            self._settled.popitem(last=False)

    def _stranger(self, sender: str, delivery: Delivery) -> Refusal:
        """Why a delivery that nobody expects is refused."""
        if delivery.decode_id != self._worker_id:
            return Refusal.WRONG_DECODE
        return Refusal.WRONG_PREFILL if delivery.prefill_id != sender else Refusal.UNKNOWN_TRANSFER

    def _refuse(
        self, sender: str, delivery: Delivery, refusal: Refusal, earlier: Refusal | None = None
    ) -> Receipt | None:
        """Count; answer unless the sender is not who it says or means another worker."""
        self._counters.refused[refusal] += 1
        if refusal is not Refusal.DUPLICATE:
            log.warning("delivery of %s from %s refused: %s", delivery.transfer_id, sender, refusal)
        if refusal in (Refusal.WRONG_DECODE, Refusal.WRONG_PREFILL):
            return None
        return self._receipt(delivery, earlier if refusal is Refusal.DUPLICATE else refusal)

    def _receipt(self, delivery: Delivery, refusal: Refusal | None) -> Receipt:
        return Receipt(
            transfer_id=delivery.transfer_id,
            decode_id=self._worker_id,
            prefill_id=delivery.prefill_id,
            refusal=refusal,
        )
