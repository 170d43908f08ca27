"""The receiving half of a worker's transfers: checks deliveries against what was promised, and their bytes.

A delivery that is refused is counted by reason and never acted on.

Knows nothing about agents, threads or event loops; the clock is given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from diptych.messages import Delivery
from kv_transfer.checksum import Pool, checksums
from kv_transfer.outcome import Arrival, Counters
from kv_transfer.transfer import IncomingTransfer, Refusal

log = logging.getLogger(__name__)


class Receiver:
    """All incoming transfers of one worker."""

    def __init__(
        self,
        block_bytes: int,
        pool: Pool | None,
        counters: Counters,
        on_arrival: Callable[[Arrival], None],
        clock: Callable[[], float],
    ) -> None:
        self._block_bytes = block_bytes
        self._pool = pool
        self._counters = counters
        self._on_arrival = on_arrival
        self._clock = clock
        self._expected: dict[str, IncomingTransfer] = {}

    @property
    def active(self) -> bool:
        """A delivery is expected."""
        return bool(self._expected)

    def expect(self, incoming: IncomingTransfer) -> None:
        self._expected[incoming.transfer_id] = incoming

    def forget(self, transfer_id: str) -> None:
        self._expected.pop(transfer_id, None)

    def receive(self, sender: str, payload: bytes) -> None:
        """A notification arrived from peer `sender`."""
        arrived_at = self._clock()
        try:
            delivery = msgspec.msgpack.decode(payload, type=Delivery)
        except msgspec.DecodeError:
            self._counters.refused[Refusal.MALFORMED] += 1
            return
        incoming = self._expected.get(delivery.transfer_id)
        refusal = incoming.accept(delivery, sender) if incoming else Refusal.UNKNOWN_TRANSFER
        if refusal is not None:
            self._counters.refused[refusal] += 1
            log.warning("delivery of %s from %s refused: %s", delivery.transfer_id, sender, refusal)
            return
        bad_blocks = self._bad_blocks(delivery)
        verify_ms = (self._clock() - arrived_at) * 1_000
        arrival = Arrival(
            delivery=delivery,
            bad_blocks=bad_blocks,
            num_bytes=len(delivery.slots) * self._block_bytes,
            transfer_ms=delivery.first_post_ms + verify_ms,
            exposed_ms=delivery.last_token_ms + verify_ms,
        )
        self._counters.count(arrival.num_bytes, arrival.transfer_ms / 1_000, failed=bool(bad_blocks))
        self._counters.exposed_transfer_seconds_total += arrival.exposed_ms / 1_000
        self._on_arrival(arrival)

    def _bad_blocks(self, delivery: Delivery) -> tuple[int, ...]:
        if self._pool is None:
            return ()
        blocks = [slot.block for slot in delivery.slots]
        arrived = zip(blocks, checksums(self._pool, blocks), delivery.checksums, strict=True)
        return tuple(block for block, here, there in arrived if here != there)
