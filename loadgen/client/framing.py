"""Where a response's body ends and what is in it (RFC 9112, 6 and 7): chunked, of a known length, or until the close.

h11 does all of this too and reads the heads of responses here; but a token comes as a chunk of its own, and for a
hundred bytes a state machine that serves every case costs more than all the rest (docs/decisions/031). Tests hold this
to what h11 says of the same bytes.
"""

from __future__ import annotations

from typing import Protocol

LINE_END = b"\r\n"
HEX = b"0123456789abcdefABCDEF"
MAX_LINE_BYTES = 16_384  # of a chunk's size, with extensions, or of a trailer


class BadFraming(ValueError):
    """The body is not what its framing says."""


class Body(Protocol):
    ended: bool

    def feed(self, data: bytes) -> bytes:
        """The payload in the next bytes. Sets `ended` when nothing more belongs to the body.

        Raises:
            BadFraming: the bytes are not of this framing, or go on after its end.
        """
        ...

    def close(self) -> None:
        """The connection has ended. Sets `ended` if that ends the body in order."""
        ...


class Chunked:
    def __init__(self) -> None:
        self.ended = False
        self._rest = b""  # a line that has begun
        self._left = 0  # of the chunk, its line end included
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        data = self._rest + data if self._rest else data
        self._rest = b""
        payload: list[bytes] = []
        at = 0
        while at < len(data):
            if self._left:
                at = self._chunk(data, at, payload)
                continue
            end = data.find(LINE_END, at)
            if end < 0:
                self._hold(data[at:])
                break
            line, at = data[at:end], end + len(LINE_END)
            if self._in_trailers:
                if not line:
                    self._end(data, at)
                    break
            elif size := _size_of(line):
                self._left = size + len(LINE_END)
            else:
                self._in_trailers = True
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def close(self) -> None:
        """Too early, whenever it comes: the end is marked."""

    def _chunk(self, data: bytes, at: int, payload: list[bytes]) -> int:
        """Take what there is of a chunk and its line end; returns where the rest begins."""
        taken = data[at : at + self._left]
        size = max(0, self._left - len(LINE_END))
        if size:
            payload.append(taken[:size])
        mark = taken[size:]
        if mark and mark != LINE_END[-min(2, self._left) :][: len(mark)]:
            raise BadFraming("a chunk is longer than its size")
        self._left -= len(taken)
        return at + len(taken)

    def _hold(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            raise BadFraming("a chunk's size has no end")
        self._rest = line

    def _end(self, data: bytes, at: int) -> None:
        self.ended = True
        if at < len(data):
            raise BadFraming("bytes after the end of the body")


class Sized:
    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self.ended = num_bytes == 0

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            raise BadFraming("bytes after the end of the body")
        self._left -= len(data)
        self.ended = not self._left
        return data

    def close(self) -> None:
        """Too early, unless it has ended."""


class UntilClose:
    def __init__(self) -> None:
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        return data

    def close(self) -> None:
        self.ended = True


def body_of(headers: dict[bytes, bytes]) -> Body:
    """Of a response to a POST, by its headers (names in lower case).

    Raises:
        BadFraming: the length is no number, or the transfer coding is unknown.
    """
    coding = headers.get(b"transfer-encoding", b"").strip().lower()
    if coding == b"chunked":
        return Chunked()
    if coding:
        raise BadFraming("a transfer coding that is not chunked")
    length = headers.get(b"content-length")
    if length is None:
        return UntilClose()
    if not length.isdigit():
        raise BadFraming("a length that is no number")
    return Sized(int(length))


def _size_of(line: bytes) -> int:
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not digits or len(digits) > 16 or digits.translate(None, HEX):
        raise BadFraming("a chunk's size is no number")
    return int(digits, 16)
