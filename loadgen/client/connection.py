"""HTTP/1.1 over one connection, on asyncio's protocols rather than its streams: what a token costs decides how much
load one process can make and how truly it sees its times (docs/decisions/031). h11 reads heads, `framing` bodies."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import h11

from loadgen.client.answer import Answer
from loadgen.client.framing import BadFraming, Body, body_of


class ConnectionLost(Exception):
    """The connection ended before the response did, or what came was no response."""


class RequestHead:
    """The head of every request, but for its length."""

    def __init__(self, path: str, headers: list[tuple[str, str]]) -> None:
        """
        Raises:
            ValueError: a header cannot be sent.
        """
        connection = h11.Connection(h11.CLIENT)
        try:
            made = connection.send(h11.Request(method="POST", target=path, headers=[*headers, ("content-length", "0")]))
        except h11.LocalProtocolError:
            raise ValueError("a header has characters that HTTP does not allow") from None
        assert made is not None, "h11 gives bytes for everything but the end of a connection"
        self._before = made.removesuffix(b"0\r\n\r\n")

    def with_body(self, body: bytes) -> bytes:
        return b"%b%d\r\n\r\n%b" % (self._before, len(body), body)


class Connection(asyncio.Protocol):
    """One request at a time. The time of a byte is when its segment was read."""

    def __init__(self) -> None:
        self._lost = False
        self._head: h11.Connection | None = None  # while the head of a response is awaited
        self._body: Body | None = None
        self._keep_alive = False
        self._answer: Answer | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def reusable(self) -> bool:
        return not self._lost and self._ended is None

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send a request and feed its response to `answer`; returns when the response has ended.

        Raises:
            ConnectionLost: it ended before. What had come is in `answer`.
        """
        self._answer, self._body, self._head = answer, None, h11.Connection(h11.CLIENT)
        self._head.send(h11.Request(method="POST", target="/", headers=[("host", "-"), ("content-length", "0")]))
        self._ended = asyncio.get_running_loop().create_future()
        try:
            if self._lost:
                raise ConnectionLost
            self._transport.write(request)
            await self._ended
        except BaseException:
            self.close()
            raise
        finally:
            self._answer = self._ended = self._head = self._body = None
        if not self._keep_alive:
            self.close()

    def close(self) -> None:
        self._lost = True
        self._transport.abort()

    # -- asyncio's side ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not of asyncio's classes

    def data_received(self, data: bytes) -> None:
        at_s = time.monotonic()
        try:
            if self._body is None:
                data = self._read_head(data)
            if self._body is not None and self._answer is not None:
                self._read_body(self._body, self._answer, data, at_s)
        except (h11.RemoteProtocolError, BadFraming):
            self.close()
            self._end(ConnectionLost())

    def eof_received(self) -> None:
        self._lost = True
        if self._body is not None and self._answer is not None:
            self._body.close()
            self._end_if_over(self._body, self._answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._end(ConnectionLost())

    def _read_head(self, data: bytes) -> bytes:
        """Returns what came behind the head; nothing while it is not whole."""
        if self._head is None or self._answer is None:
            raise BadFraming("bytes that nobody asked for")
        self._head.receive_data(data)
        while not isinstance(event := self._head.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                return b""
        headers = dict(event.headers)
        self._keep_alive = event.http_version == b"1.1" and headers.get(b"connection", b"").lower() != b"close"
        self._body = body_of(headers)
        self._answer.head(event.status_code, headers.get(b"content-type", b"").decode("latin-1"))
        return self._head.trailing_data[0]

    def _read_body(self, body: Body, answer: Answer, data: bytes, at_s: float) -> None:
        if data:
            answer.body(body.feed(data), at_s)
        self._end_if_over(body, answer)

    def _end_if_over(self, body: Body, answer: Answer) -> None:
        if body.ended:
            answer.end()
            self._end(None)

    def _end(self, error: ConnectionLost | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
