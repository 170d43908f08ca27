"""One request's updates from both of its legs, in the order the client must see them.

The first token comes from prefill, the rest from decode, over two connections: an update that overtakes another waits
here until every earlier position of its choice has been handed out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

from diptych.errors import DeadlineExceeded, DiptychError, from_wire
from diptych.messages import Update

Result = TypeVar("Result")


class Mailbox:
    def __init__(self, num_choices: int) -> None:
        self._open = set(range(num_choices))  # choices without a finish reason yet
        self._next = dict.fromkeys(range(num_choices), 0)
        self._early: dict[tuple[int, int], Update] = {}
        self._ready: deque[Update] = deque()
        self._error: DiptychError | None = None
        self._arrived = asyncio.Event()
        self._failed = asyncio.Event()

    def put(self, update: Update) -> None:
        """Take an update off a frame. Anything for a finished choice or an old position is a duplicate: dropped."""
        if update.error is not None:
            self.fail(from_wire(update.error))
            return
        if update.position < self._next.get(update.choice, 0):
            return
        self._early[update.choice, update.position] = update
        while (due := self._early.pop((update.choice, self._next.get(update.choice, -1)), None)) is not None:
            self._next[due.choice] += len(due.token_ids)
            self._ready.append(due)
            self._arrived.set()

    def fail(self, error: DiptychError) -> None:
        """End the request with `error` once the updates before it are handed out. The first error wins."""
        self._error = self._error or error
        self._failed.set()
        self._arrived.set()

    async def during(self, call: Coroutine[Any, Any, Result]) -> Result:
        """Await a call to a worker; if the request fails meanwhile, cancel the call.

        Raises:
            DiptychError: what the call raised, or what the request failed with.
        """
        calling, failing = asyncio.create_task(call), asyncio.create_task(self._failed.wait())
        try:
            await asyncio.wait({calling, failing}, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return calling.result()
            assert self._error is not None
            raise self._error
        finally:
            for task in (calling, failing):
                task.cancel()
            await asyncio.gather(calling, failing, return_exceptions=True)

    @property
    def failed(self) -> bool:
        """The request has failed on a worker, whether that has been told or not."""
        return self._failed.is_set()

    @property
    def done(self) -> bool:
        """Every choice's finish reason has been handed out."""
        return not self._open

    async def next(self, deadline: float) -> Update:
        """The next update; `deadline` in event-loop seconds.

        Raises:
            DeadlineExceeded: nothing came in time.
            DiptychError: the request failed on a worker.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                raise DeadlineExceeded("the request's deadline passed before its last token") from None
        update = self._ready.popleft()
        if update.finish_reason is not None:
            self._open.discard(update.choice)
        return update
