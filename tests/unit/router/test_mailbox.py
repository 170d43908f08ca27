import asyncio
import random

import pytest

from diptych.errors import DeadlineExceeded, LegFailed, WireError
from diptych.messages import FinishReason, Update
from router.mailbox import Mailbox


def update(choice: int, position: int, count: int = 1, *, last: bool = False) -> Update:
    tokens = list(range(position, position + count))
    return Update("r", choice, position, tokens, FinishReason.LENGTH if last else None)


async def collect(mailbox: Mailbox) -> list[Update]:
    deadline = asyncio.get_running_loop().time() + 5
    updates = []
    while not mailbox.done:
        updates.append(await mailbox.next(deadline))
    return updates


async def test_updates_come_out_in_order_whichever_leg_was_faster() -> None:
    updates = [update(choice, position, last=position == 9) for choice in range(3) for position in range(10)]
    random.Random(1).shuffle(updates)
    mailbox = Mailbox(3)
    for one in updates:
        mailbox.put(one)
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for one in await collect(mailbox):
        tokens[one.choice] += one.token_ids
    assert tokens == {choice: list(range(10)) for choice in range(3)}


async def test_duplicates_are_dropped() -> None:
    mailbox = Mailbox(1)
    for one in (update(0, 0), update(0, 0), update(0, 1, 2), update(0, 1, 2), update(0, 3, last=True)):
        mailbox.put(one)
    assert [one.position for one in await collect(mailbox)] == [0, 1, 3]


async def test_a_gap_never_reaches_the_client() -> None:
    mailbox = Mailbox(1)
    mailbox.put(update(0, 0))
    mailbox.put(update(0, 2, last=True))
    loop = asyncio.get_running_loop()
    assert (await mailbox.next(loop.time() + 1)).position == 0
    with pytest.raises(DeadlineExceeded):
        await mailbox.next(loop.time())


async def test_an_error_ends_the_request_after_what_came_before_it() -> None:
    mailbox = Mailbox(1)
    mailbox.put(update(0, 0))
    mailbox.put(Update("r", 0, 0, [], error=WireError("leg_failed", "worker died")))
    mailbox.fail(LegFailed("a later error"))
    deadline = asyncio.get_running_loop().time() + 1
    assert (await mailbox.next(deadline)).position == 0
    with pytest.raises(LegFailed, match="worker died"):
        await mailbox.next(deadline)


async def test_an_error_wakes_who_is_waiting() -> None:
    mailbox = Mailbox(1)
    waiting = asyncio.create_task(mailbox.next(asyncio.get_running_loop().time() + 60))
    await asyncio.sleep(0)
    mailbox.fail(LegFailed("gone"))
    with pytest.raises(LegFailed):
        await waiting


async def test_a_call_to_a_worker_ends_when_the_request_fails() -> None:
    mailbox = Mailbox(1)
    cancelled = asyncio.Event()

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = asyncio.create_task(mailbox.during(call()))
    await asyncio.sleep(0)
    mailbox.fail(LegFailed("the other leg died"))
    with pytest.raises(LegFailed, match="other leg"):
        await waiting
    assert cancelled.is_set()


async def test_a_call_to_a_worker_returns_or_raises_what_it_does() -> None:
    async def answer() -> int:
        return 7

    async def refuse() -> int:
        raise LegFailed("refused")

    mailbox = Mailbox(1)
    assert await mailbox.during(answer()) == 7
    with pytest.raises(LegFailed, match="refused"):
        await mailbox.during(refuse())


async def test_whoever_is_cancelled_during_a_call_cancels_the_call() -> None:
    mailbox = Mailbox(1)
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = asyncio.create_task(mailbox.during(call()))
    await started.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled.is_set()
