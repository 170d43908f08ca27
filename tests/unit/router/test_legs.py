"""Who is blamed when a request fails while one of its two workers is being asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from diptych.errors import DiptychError, Draining, LegFailed
from router.attempts import Attempts
from router.bookings import Bookings
from router.legs import Legs
from router.mailbox import Mailbox
from router.placement import Placement


class Asked:
    """A call to a worker that answers when it is told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.begun.set()
        return await self.answer


def link(worker_id: str) -> Any:
    return SimpleNamespace(record=SimpleNamespace(worker_id=worker_id), connected=True)


@pytest.fixture
def legs() -> Legs:
    booking = Bookings().book(Placement("p", "d", 0.0, 0, "remote"), 10, 1)
    return Legs("r", link("d"), link("p"), Mailbox(1), booking)


def blamed(legs: Legs, error: DiptychError) -> frozenset[str]:
    attempts = Attempts(9)
    attempts.failed(error, legs.pair, legs.refused_by, legs.lost)
    return attempts.avoid.workers


async def test_a_worker_that_is_asked_is_not_blamed_for_the_others_death(legs: Legs) -> None:
    """Else the only decode worker would be avoided because a prefill worker died, and nobody be left to try."""
    asked = Asked()
    asking = asyncio.create_task(legs.ask(legs.decode, asked()))
    await asked.begun.wait()
    cast(Any, legs.prefill).connected = False
    legs.mailbox.fail(LegFailed("a worker was lost"))
    with pytest.raises(LegFailed) as caught:
        await asking
    assert blamed(legs, caught.value) == {"p"}


@pytest.mark.parametrize("error", [LegFailed("unreachable"), Draining("leaving", retry_after_s=1.0)])
async def test_a_worker_that_does_not_take_it_is_blamed(legs: Legs, error: DiptychError) -> None:
    asked = Asked()
    asked.answer.set_exception(error)
    with pytest.raises(type(error)) as caught:
        await legs.ask(legs.decode, asked())
    assert blamed(legs, caught.value) == {"d"}


async def test_who_took_it_is_not_blamed_for_what_comes_later(legs: Legs) -> None:
    asked = Asked()
    asked.answer.set_result("ticket")
    assert await legs.ask(legs.decode, asked()) == "ticket"
    assert blamed(legs, LegFailed("the transfer failed")) == frozenset()
