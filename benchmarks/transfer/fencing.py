"""What fencing costs on the processor: writing, reading and judging one delivery, without any block."""

from __future__ import annotations

import statistics
import time

from diptych.messages import Delivery, Slot
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.notification import seal, unseal

TURNS = 200


def fencing_ms(num_blocks: int) -> float:
    """The median of many, for a transfer of so many blocks."""
    slots = [Slot(block, 7) for block in range(num_blocks)]
    delivery = Delivery(
        transfer_id="0" * 32,
        decode_id="decode-host-00000000",
        prefill_id="prefill-host-00000000",
        slots=slots,
        checksums=[(1 << 64) - 1] * num_blocks,
        first_tokens=[1],
        first_post_ms=1.0,
        last_token_ms=1.0,
    )
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        promise = IncomingTransfer(delivery.transfer_id, delivery.decode_id, delivery.prefill_id, slots, 1)
        read = unseal(seal(delivery))
        assert isinstance(read, Delivery)
        refusal = promise.accept(read, delivery.prefill_id)
        times.append(time.perf_counter() - began)
        if refusal is not None:
            raise RuntimeError(f"a delivery that is as promised was refused: {refusal}")
    return statistics.median(times) * 1e3
