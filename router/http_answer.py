"""One generation as an HTTP answer: server-sent events, or one JSON object. A client that leaves cancels it.

The first event is awaited before any header is sent, so that whatever fails until then has a proper status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diptych.errors import DeadlineExceeded
from diptych.telemetry import Logger
from router.choices import Generation
from router.disconnect import cancelled_on_disconnect
from router.http_errors import as_diptych_error, error_json, log_failure
from router.openai_answers import Answer
from router.openai_render import Renderer, WholeChoice
from router.prompt_run import ChoiceEvent
from router.requests import DEADLINE_GRACE_S
from router.run_report import PLACEMENT_HEADER, placement_header

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class GenerationAnswer:
    """An ASGI response; Starlette calls it once."""

    def __init__(
        self,
        generation: Generation,
        renderer: Renderer,
        *,
        stream: bool,
        headers: dict[str, str],
        logger: Logger,
        show_placement: bool = False,
    ) -> None:
        """
        Args:
            show_placement: say in a header where the request ran, as far as that is known when headers are sent.
        """
        self._generation = generation
        self._renderer = renderer
        self._stream = stream
        self._headers = headers
        self._logger = logger
        self._show_placement = show_placement

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Raises:
            DiptychError: before the first event: what went wrong. Later only if the client does not read: then the
                connection ends, because there is no other way to tell it.
        """
        longest_ms = max(prompt.deadline_ms for prompt in self._generation.request.prompts)
        try:
            async with asyncio.timeout(longest_ms / 1e3 + DEADLINE_GRACE_S):
                await self._answer(scope, receive, send)
        except TimeoutError:
            raise DeadlineExceeded("the client did not read its answer before the request's deadline") from None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with cancelled_on_disconnect(receive), aclosing(self._generation.events()) as events:
            if self._stream:
                await self._send_stream(events, scope["state"]["request_id"], send)
            else:
                answer = await self._collect(events)
                response = Response(_encode(answer), 200, self._all_headers(), "application/json")
                await response(scope, receive, send)

    def _all_headers(self) -> dict[str, str]:
        """Once the first event is there: then all prompts are placed, and the first one's hit is known."""
        if not self._show_placement:
            return self._headers
        return self._headers | {PLACEMENT_HEADER: placement_header(self._generation.runs)}

    async def _collect(self, events: AsyncGenerator[ChoiceEvent, None]) -> Answer:
        choices: dict[int, WholeChoice] = {}
        async for event in events:
            choices.setdefault(event.index, WholeChoice()).add(event)
        return self._renderer.whole([choices[i] for i in sorted(choices)])

    async def _send_stream(self, events: AsyncGenerator[ChoiceEvent, None], request_id: str, send: Send) -> None:
        first = await anext(events)
        headers = self._all_headers() | {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        async for data in self._sse(first, events, request_id):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _sse(
        self, first: ChoiceEvent, events: AsyncGenerator[ChoiceEvent, None], request_id: str
    ) -> AsyncIterator[bytes]:
        """One item per event of the generation: its chunks together. A failure is the last one, without [DONE]."""
        try:
            yield b"".join(_data(chunk) for chunk in self._renderer.chunks(first))
            async for event in events:
                data = b"".join(_data(chunk) for chunk in self._renderer.chunks(event))
                if data:
                    yield data
            yield b"".join(_data(chunk) for chunk in self._renderer.tail()) + DONE
        except Exception as raised:
            error = as_diptych_error(raised)
            log_failure(self._logger, request_id, raised, error)
            yield b"data: " + error_json(error) + b"\n\n"


def _data(chunk: Answer) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"
