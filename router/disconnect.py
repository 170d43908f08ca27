"""Cancels the work for a client that has gone away, streaming or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from diptych.errors import Cancelled


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels the body of the `async with` as soon as ASGI reports a disconnect, as `asyncio.timeout` does in time.

    The request's body must have been read: whatever `receive` still gives is dropped.

    Raises:
        Cancelled: the client disconnected.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise Cancelled("the client disconnected") from None
        raise
    finally:
        watcher.cancel()
