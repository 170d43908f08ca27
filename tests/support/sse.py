"""Server-sent events of a streamed answer, as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx

DONE = "[DONE]"


async def read_events(response: httpx.Response) -> AsyncGenerator[Any, None]:
    """Each event's JSON, and `DONE`.

    Raises:
        AssertionError: the framing is not `data: ...` and an empty line, or the stream ends within an event.
    """
    rest = b""
    async for part in response.aiter_bytes():
        *complete, rest = (rest + part).split(b"\n\n")
        for event in complete:
            assert event.startswith(b"data: "), event
            data = event.removeprefix(b"data: ")
            yield DONE if data == DONE.encode() else json.loads(data)
    assert not rest, f"the stream ends within an event: {rest!r}"
