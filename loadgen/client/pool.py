"""Connections to one server, kept open between requests. As many as there are requests at a time: a limit here would
queue requests where no server sees them."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

from loadgen.client.answer import Answer
from loadgen.client.connection import Connection, ConnectionLost, RequestHead

CONNECT_TIMEOUT_S = 10.0


class Pool:
    def __init__(self, base_url: str, path: str, headers: dict[str, str], ca_file: str = "") -> None:
        """
        Args:
            ca_file: PEM, of the authorities that an https server is believed by; empty: the system's.

        Raises:
            OSError: it cannot be read (ssl.SSLError is one).
            ValueError: a header cannot be sent.
        """
        parts = urlsplit(base_url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context(cafile=ca_file or None) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        fixed = [
            ("host", parts.netloc.rpartition("@")[2]),
            ("accept", "text/event-stream"),
            ("content-type", "application/json"),
            *headers.items(),
        ]
        self._head = RequestHead(path, fixed)
        self._idle: list[Connection] = []
        self.opened = 0

    async def post(self, body: bytes, answer: Answer) -> bool:
        """Send one request; `answer` then has all of the response. True if it was sent twice: an idle connection may
        have been closed by the server just then, which is no failure of the request.

        Raises:
            OSError, TimeoutError: no connection.
            ConnectionLost: it ended within the response.
        """
        request = self._head.with_body(body)
        connection = self._take()
        if connection is not None:
            try:
                await self._exchange(connection, request, answer)
                return False
            except ConnectionLost:
                if answer.started:
                    raise
        await self._exchange(await self._open(), request, answer)
        return connection is not None

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, connection: Connection, request: bytes, answer: Answer) -> None:
        await connection.exchange(request, answer)
        if connection.reusable:
            self._idle.append(connection)

    def _take(self) -> Connection | None:
        """The one used last: the others may grow old and be closed by the server."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _open(self) -> Connection:
        self.opened += 1
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        return connection
