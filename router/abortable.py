"""A stream of events that somebody else may end, whether its reader waits for the next one or is busy with the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from diptych.errors import Cancelled
from router.prompt_run import ChoiceEvent


class AbortableEvents:
    def __init__(self, events: AsyncGenerator[ChoiceEvent, None]) -> None:
        self._events = events
        self._aborted = asyncio.Event()
        self._busy = asyncio.Lock()  # a generator can be read or closed by one at a time

    async def next(self) -> ChoiceEvent | None:
        """The next event; None at the end.

        Raises:
            Cancelled: it was aborted.
            DiptychError: what the generation raised.
        """
        async with self._busy:
            if self._aborted.is_set():
                raise Cancelled("the request was aborted")
            reading = asyncio.ensure_future(anext(self._events, None))
            aborting = asyncio.create_task(self._aborted.wait())
            try:
                await asyncio.wait({reading, aborting}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    raise Cancelled("the request was aborted")
                return reading.result()
            finally:
                for task in (reading, aborting):
                    task.cancel()
                await asyncio.gather(reading, aborting, return_exceptions=True)

    async def abort(self) -> None:
        """Idempotent. The generation is closed at once, also if its reader is stuck in sending what it read last."""
        self._aborted.set()
        await self.aclose()

    async def aclose(self) -> None:
        async with self._busy:
            await self._events.aclose()
