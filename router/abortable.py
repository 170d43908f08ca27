"""A stream of events that somebody else may end, whether its reader waits for the next one or is busy with the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from diptych.errors import Cancelled, DiptychError

Item = TypeVar("Item")


class AbortableEvents(Generic[Item]):
    def __init__(self, events: AsyncGenerator[Item, None]) -> None:
        self._events = events
        self._aborted = asyncio.Event()
        self._why: DiptychError | None = None
        self._busy = asyncio.Lock()  # a generator can be read or closed by one at a time

    async def next(self) -> Item | None:
        """The next event; None at the end.

        Raises:
            DiptychError: what it was aborted with, or what the generation raised.
        """
        async with self._busy:
            if self._why is not None:
                raise self._why
            reading = asyncio.ensure_future(anext(self._events, None))
            aborting = asyncio.create_task(self._aborted.wait())
            try:
                await asyncio.wait({reading, aborting}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    assert self._why is not None
                    raise self._why
                return reading.result()
            finally:
                for task in (reading, aborting):
                    task.cancel()
                await asyncio.gather(reading, aborting, return_exceptions=True)

    async def abort(self, why: DiptychError | None = None) -> None:
        """Idempotent. The generation is closed at once, also if its reader is stuck in sending what it read last.

        Args:
            why: what the reader is told; the first one counts.
        """
        self._why = self._why or why or Cancelled("the request was aborted")
        self._aborted.set()
        await self.aclose()

    async def aclose(self) -> None:
        async with self._busy:
            await self._events.aclose()
