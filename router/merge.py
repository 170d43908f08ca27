"""Several async generators as one, in the order their items arrive. Knows nothing about what the items are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")

MAX_BUFFERED = 64  # items; a slow reader slows the sources down instead of filling memory


async def merge(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Ends when every source has ended. The first failure, or closing this generator, closes all of them."""
    queue: asyncio.Queue[tuple[Item | None, BaseException | None]] = asyncio.Queue(MAX_BUFFERED)

    cancelled = False

    async def pump(source: AsyncGenerator[Item, None]) -> None:
        failure: BaseException | None = None
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put((item, None))
        except Exception as error:
            failure = error
        except asyncio.CancelledError as error:
            if cancelled:
                raise
            failure = error  # a source's own: whoever waits here must hear of it
        await queue.put((None, failure))

    pumps = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(pumps)
        while running:
            item, failure = await queue.get()
            if failure is not None:
                raise failure
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        cancelled = True
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
