"""What a streamed token costs different HTTP clients, in CPU time of one process: httpx, h11 alone on asyncio's
protocols, and the load generator's own connection. All decode the same events with the same code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import cast
from urllib.parse import urlsplit

import h11
import httpx
import msgspec
import uvloop

from loadgen.client.answer import Answer
from loadgen.client.pool import Pool
from loadgen.client.records import Record

PATH, CONCURRENCY, REQUESTS, ROUNDS = "/v1/completions", 64, 320, 3

Ask = Callable[[], Awaitable[Answer]]


def compare(base_url: str, num_tokens: int) -> dict[str, float]:
    """CPU microseconds a token, the least of `ROUNDS` that take turns."""
    body = msgspec.json.encode(
        {"model": "mock", "prompt": list(range(1_000, 1_100)), "max_tokens": num_tokens, "stream": True}
    )
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in (("httpx", _httpx), ("h11", _h11), ("loadgen", _ours)):
            found.setdefault(name, []).append(uvloop.run(run(base_url, body, num_tokens)))
    return {name: round(min(costs), 2) for name, costs in found.items()}


async def _httpx(base_url: str, body: bytes, num_tokens: int) -> float:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def ask() -> Answer:
            answer = Answer()
            async with client.stream("POST", base_url + PATH, content=body) as response:
                answer.head(response.status_code, response.headers["content-type"])
                async for data in response.aiter_raw():
                    answer.body(data, time.monotonic())
            answer.end()
            return answer

        return await _cost(ask, num_tokens)


async def _h11(base_url: str, body: bytes, num_tokens: int) -> float:
    parts, idle = urlsplit(base_url), list[_H11]()

    async def ask() -> Answer:
        connection = idle.pop() if idle else None
        if connection is None:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_H11, parts.hostname or "", parts.port or 80)
        answer = await connection.ask(body)
        idle.append(connection)
        return answer

    return await _cost(ask, num_tokens)


async def _ours(base_url: str, body: bytes, num_tokens: int) -> float:
    pool = Pool(base_url, PATH, {})

    async def ask() -> Answer:
        answer = Answer()
        await pool.post(body, answer)
        return answer

    try:
        return await _cost(ask, num_tokens)
    finally:
        pool.close()


async def _cost(ask: Ask, num_tokens: int) -> float:
    left = iter(range(REQUESTS))

    async def client() -> None:
        for _ in left:
            answer = await ask()
            record = Record(index=0, intended_ms=0, planned_input=1, planned_output=num_tokens)
            answer.fill(record, 0.0, 0.0)
            assert record.ok, record.failure
            assert record.output_tokens == num_tokens

    began = time.process_time()
    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return (time.process_time() - began) / (REQUESTS * num_tokens) * 1e6


class _H11(asyncio.Protocol):
    """The straightforward way: h11 reads heads and bodies."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._http = h11.Connection(h11.CLIENT)

    def ask(self, body: bytes) -> asyncio.Future[Answer]:
        self._answer, self._ended = Answer(), asyncio.get_running_loop().create_future()
        request = h11.Request(method="POST", target=PATH, headers=[("host", "x"), ("content-length", str(len(body)))])
        parts = (self._http.send(event) for event in (request, h11.Data(data=body), h11.EndOfMessage()))
        self._transport.write(b"".join(part or b"" for part in parts))
        return self._ended

    def data_received(self, data: bytes) -> None:
        at_s = time.monotonic()
        self._http.receive_data(data)
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Data):
                self._answer.body(bytes(event.data), at_s)
            elif isinstance(event, h11.Response):
                self._answer.head(event.status_code, "text/event-stream")
            elif isinstance(event, h11.EndOfMessage):
                self._answer.end()
                self._http.start_next_cycle()
                self._ended.set_result(self._answer)
                return
