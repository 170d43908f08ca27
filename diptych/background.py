"""Tasks that run beside a process's main work for as long as it lasts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def background(
    work: Coroutine[Any, Any, None], name: str, on_failure: Callable[[BaseException], None]
) -> AsyncIterator[None]:
    """Run `work` until the block is left. It is not expected to end by itself; `on_failure` is told at once if it does,
    because a process that goes on without it looks well and is not."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda ended: _tell(ended, name, on_failure))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # `on_failure` has been told
            await task


def _tell(task: asyncio.Task[None], name: str, on_failure: Callable[[BaseException], None]) -> None:
    if not task.cancelled():
        on_failure(task.exception() or RuntimeError(f"{name} ended by itself"))
