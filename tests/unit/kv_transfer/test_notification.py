from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.messages import Delivery, Receipt, Slot
from kv_transfer.notification import WARM_UP, seal, unseal

DELIVERY = Delivery(
    transfer_id="t",
    decode_id="decode",
    prefill_id="prefill",
    slots=[Slot(1, 2), Slot(3, 4)],
    checksums=[0, None],
    first_tokens=[7],
    first_post_ms=1.5,
    last_token_ms=0.5,
)
MESSAGES = (DELIVERY, Receipt(transfer_id="t", decode_id="decode", prefill_id="prefill", refusal="damaged"))


@pytest.mark.parametrize("message", MESSAGES)
def test_what_is_sealed_is_read(message: Delivery | Receipt) -> None:
    assert unseal(seal(message)) == message


@pytest.mark.parametrize("message", MESSAGES)
def test_every_flipped_bit_and_every_cut_is_noticed(message: Delivery | Receipt) -> None:
    payload = seal(message)
    for bit in range(8 * len(payload)):
        altered = bytearray(payload)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            unseal(bytes(altered))
    for length in range(len(payload)):
        with pytest.raises(ValueError):
            unseal(payload[:length])
    with pytest.raises(ValueError):
        unseal(payload + b"\x00")


@given(st.binary(max_size=64))
def test_noise_is_no_message(noise: bytes) -> None:
    with pytest.raises(ValueError):
        unseal(noise)
    with pytest.raises(ValueError):
        unseal(WARM_UP)


def test_a_sealed_message_of_another_kind_is_refused() -> None:
    sealed = seal(msgspec.Raw(msgspec.msgpack.encode({"transfer_id": "t"})))  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        unseal(sealed)
