from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from diptych.errors import Cancelled
from router.abortable import AbortableEvents
from router.prompt_run import ChoiceEvent

EVENT = ChoiceEvent(index=0, text="a", token_ids=[1], logprobs=[], finish_reason=None, num_tokens=1)


class Generation:
    """One event, then none for as long as it is let live; it takes a few turns of the loop to end."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.closing = asyncio.Event()
        self.endings = 0

    async def events(self) -> AsyncGenerator[ChoiceEvent, None]:
        try:
            yield EVENT
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            self.closing.set()
            for _ in range(5):
                await asyncio.sleep(0)
            self.endings += 1


async def test_the_end_is_none() -> None:
    async def one() -> AsyncGenerator[ChoiceEvent, None]:
        yield EVENT

    events = AbortableEvents(one())
    assert [await events.next(), await events.next()] == [EVENT, None]


async def test_many_aborts_end_a_reader_that_waits() -> None:
    generation = Generation()
    events = AbortableEvents(generation.events())
    assert await events.next() == EVENT
    reading = asyncio.create_task(events.next())
    await generation.waiting.wait()
    await asyncio.gather(events.abort(), events.abort(), events.aclose())
    with pytest.raises(Cancelled, match="aborted"):
        await reading
    assert generation.endings == 1


async def test_the_reader_closes_and_is_aborted_at_once() -> None:
    generation = Generation()
    events = AbortableEvents(generation.events())
    await events.next()
    closing = asyncio.create_task(events.aclose())
    await generation.closing.wait()
    await asyncio.gather(events.abort(), events.abort(), closing)
    assert generation.endings == 1


async def test_an_abort_while_the_reader_is_busy_closes_at_once() -> None:
    generation = Generation()
    events = AbortableEvents(generation.events())
    await events.next()
    aborting = asyncio.create_task(events.abort())
    await generation.closing.wait()
    with pytest.raises(Cancelled, match="aborted"):
        await events.next()
    await aborting
    assert generation.endings == 1
