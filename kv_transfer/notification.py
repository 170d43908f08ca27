"""The small messages two workers send each other beside the blocks, on the wire.

    WARM_UP            one zero byte; means nothing
    seal(message)      xxh3-64 of the rest, 8 bytes little-endian ‖ msgpack of a Written, a Delivery or a Receipt

A delivery decides what is believed about blocks and which tokens follow, so it is checked like the blocks are.

Knows nothing about what the messages mean or who sent them.
"""

from __future__ import annotations

import msgspec
import xxhash

from diptych.messages import Delivery, Receipt, Written

Message = Delivery | Receipt | Written

WARM_UP = b"\x00"  # sent when two workers meet: the first message pays for the connection, ~50 ms
_DIGEST_BYTES = 8

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def seal(message: Message) -> bytes:
    body = _encode(message)
    return _digest(body) + body


def unseal(payload: bytes) -> Message:
    """
    Raises:
        ValueError: the payload was altered on its way, or is no message of ours.
    """
    body = payload[_DIGEST_BYTES:]
    if payload[:_DIGEST_BYTES] != _digest(body):
        raise ValueError(f"a notification of {len(payload)} bytes does not match its checksum")
    message: Message = _decode(body)  # raises msgspec.DecodeError, a ValueError
    return message


def _digest(body: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(body).to_bytes(_DIGEST_BYTES, "little")
