"""Bodies of responses: what our reader makes of bytes, cut anywhere, is what h11 makes of them."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.framing import BadFraming, Chunked, Sized, UntilClose, body_of

pieces = st.lists(st.binary(min_size=1, max_size=40), max_size=8)
cuts = st.lists(st.integers(0, 400), max_size=12)


def framed(payloads: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = (b"%X%b\r\n%b\r\n" % (len(payload), extension, payload) for payload in payloads)
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


def split(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in at if cut < len(data))})
    return [data[start:end] for start, end in pairwise(places)]


def by_h11(parts: list[bytes]) -> tuple[bytes, str]:
    """The payload, and how it ended: "ended", "open" or "error"."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    payload = b""
    for part in parts:
        connection.receive_data(part)
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return payload, "error"
            if isinstance(event, h11.Data):
                payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return payload, "error" if connection.trailing_data[0] else "ended"
            elif event is h11.NEED_DATA:
                break
    return payload, "open"


def by_us(parts: list[bytes]) -> tuple[bytes, str]:
    body, payload = Chunked(), b""
    try:
        for part in parts:
            payload += body.feed(part)
    except BadFraming:
        return payload, "error"
    return payload, "ended" if body.ended else "open"


@given(pieces, cuts, st.sampled_from([b"", b";name=value", b" ; x"]), st.sampled_from([b"", b"expires: 0\r\na: b\r\n"]))
def test_a_body_cut_anywhere_is_whole(payloads: list[bytes], at: list[int], extension: bytes, trailers: bytes) -> None:
    parts = split(framed(payloads, extension, trailers), at)
    assert by_us(parts) == (b"".join(payloads), "ended")
    assert by_us(parts[:-1])[1] == "open"


@given(pieces, cuts)
def test_the_same_as_h11(payloads: list[bytes], at: list[int]) -> None:
    parts = split(framed(payloads), at)
    assert by_us(parts) == by_h11(parts)


@given(pieces, st.integers(0, 200), st.integers(0, 255), cuts)
def test_a_damaged_byte_is_never_taken_for_more_than_h11_takes(
    payloads: list[bytes], place: int, byte: int, at: list[int]
) -> None:
    """We may end sooner or later than h11, which also reads trailers, but never with another payload."""
    data = bytearray(framed(payloads))
    data[place % len(data)] = byte
    parts = split(bytes(data), at)
    payload, ending = by_us(parts)
    if ending == "ended":
        assert payload == by_h11(parts)[0]


@pytest.mark.parametrize(
    "data", [b"x\r\n", b"-1\r\n", b"0x1\r\n", b"1_0\r\n", b"\r\n", b"+1\r\n", b"f" * 17 + b"\r\n", b"2\r\nabc\r\n"]
)
def test_what_is_no_chunk(data: bytes) -> None:
    with pytest.raises(BadFraming):
        Chunked().feed(data)


def test_a_size_without_an_end_is_not_collected_for_ever() -> None:
    body = Chunked()
    for _ in range(16):
        body.feed(b"1" * 1_000)
    with pytest.raises(BadFraming):
        body.feed(b"1" * 1_000)


def test_bytes_after_the_end() -> None:
    with pytest.raises(BadFraming):
        Chunked().feed(framed([b"a"]) + b"HTTP/1.1 200 OK")
    with pytest.raises(BadFraming):
        Sized(2).feed(b"abc")


def test_the_framing_is_in_the_headers() -> None:
    assert isinstance(body_of({b"transfer-encoding": b"Chunked", b"content-length": b"3"}), Chunked)
    sized = body_of({b"content-length": b"3"})
    assert (sized.feed(b"ab"), sized.ended, sized.feed(b"c"), sized.ended) == (b"ab", False, b"c", True)
    assert body_of({b"content-length": b"0"}).ended
    until = body_of({})
    assert isinstance(until, UntilClose)
    assert (until.feed(b"ab"), until.ended) == (b"ab", False)
    until.close()
    assert until.ended
    for headers in ({b"content-length": b"+3"}, {b"transfer-encoding": b"gzip, chunked"}):
        with pytest.raises(BadFraming):
            body_of(headers)
