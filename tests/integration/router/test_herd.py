"""Four routers and bursts of 64 identical new prompts: the workers are given what one router would have given them.

With the shared reserve and without it, on a real server. Routers are patient here, because all four of them choose on
this one thread, and each would take the others' choosing for Redis being slow; `benchmarks/reserve.py` measures four
processes with the limit they really have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count

import pytest
from placing import World, routers, shares, sharing
from redis.asyncio import Redis

from diptych.membership import connect
from diptych.messages import Role
from router.bookings import Load
from router.placement_metrics import jain

BURST, BURSTS = 64, 3
NUM_WORKERS = 24  # of each role: no divisor of a router's sixteen, or each router alone would spread them evenly
WORKERS = [f"{role}-{number}" for role in Role for number in range(NUM_WORKERS)]
ONE_MORE = 1.01 * NUM_WORKERS / BURST  # of max/mean
PATIENT_S = 120.0
_clusters = count()


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    client = connect(valkey_url)
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a router said or guesses counts for as long as four of them may take to choose on a busy machine."""
    names = ("sharing.load.SILENT_S", "sharing.load.LEASE_S", "sharing.log.LEASE_S")
    for name in (*names, "sharing.talk.GUESS_LASTS_S", "placer.GUESS_LASTS_S"):
        monkeypatch.setattr(f"router.{name}", 120.0)


def sharing_routers(redis: Redis, number: int) -> list[World]:
    return routers(redis, f"herd-{next(_clusters)}", number, WORKERS, PATIENT_S)


async def spread(worlds: Sequence[World]) -> dict[str, float]:
    """Of all bursts: the most that one worker was given over the mean, and Jain's index, for each role."""
    most, even = dict.fromkeys(Role, 0.0), dict.fromkeys(Role, 1.0)
    for seed in range(BURSTS):
        placing = (worlds[i % len(worlds)].place(f"{seed}-{i}", seed) for i in range(BURST))
        booked = await asyncio.gather(*placing)
        for role in Role:
            given = [float(shares(booked, role)[name]) for name in WORKERS if name.startswith(role)]
            most[role] = max(most[role], max(given) * NUM_WORKERS / BURST)
            even[role] = min(even[role], jain(given))
        for each in booked:
            each.booking.release()
        await quiet(worlds)
    return {f"{what} {role}": of[role] for what, of in (("max/mean", most), ("jain", even)) for role in Role}


async def quiet(worlds: Sequence[World]) -> None:
    """Everybody has heard of everything."""
    async with asyncio.timeout(60.0):
        while any(world.reservations and len(views(worlds)) > 1 for world in worlds):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def views(worlds: Sequence[World]) -> set[tuple[Load, ...]]:
    """What each believes to be booked in all."""
    return {tuple(world.bookings.load(name) for name in WORKERS) for world in worlds}


def differs(one: dict[str, float], other: dict[str, float]) -> set[str]:
    """What is off by more than a tenth; of the most that one worker was given, by more than one request, because which
    of several equals is drawn depends on whose turn it is."""
    tolerance = {name: ONE_MORE if name.startswith("max") else 0.1 * one[name] for name in one}
    return {name for name in one if abs(one[name] - other[name]) > tolerance[name]}


async def test_four_routers_spread_a_burst_as_one_does(redis: Redis) -> None:
    [alone] = sharing_routers(redis, 1)
    async with sharing(alone):
        of_one = await spread([alone])
    four = sharing_routers(redis, 4)
    async with sharing(*four):
        of_four = await spread(four)
    assert [world.outcomes() for world in four] == [{"reserved": BURST * BURSTS // 4}] * 4
    assert not differs(of_one, of_four), (of_one, of_four)


async def test_without_the_shared_reserve_they_herd(redis: Redis) -> None:
    """The control: the same routers, the same bursts."""
    [alone] = sharing_routers(redis, 1)
    async with sharing(alone):
        of_one = await spread([alone])
    of_four = await spread([World(*WORKERS, seed=17 * number + 1) for number in range(4)])
    assert differs(of_one, of_four) == {"max/mean decode", "jain decode", "jain prefill"}, (of_one, of_four)


async def test_two_and_more_routers_believe_the_same_when_all_is_quiet(redis: Redis) -> None:
    four = sharing_routers(redis, 4)
    async with sharing(*four):
        booked = await asyncio.gather(*(four[i % 4].place(f"r{i}", i % 5) for i in range(40)))
        for each in booked[::2]:
            each.booking.release()
        for each in booked[1::2]:
            each.booking.prefilled()
        await quiet(four)
        [view] = views(four)
        assert sum(load.sequences for load in view) == 20
        hashes = four[0].request("r", 3)[1]
        matches = [world.index.matches(hashes, now=0.0) for world in four]
        assert all(each == matches[0] for each in matches)
        assert matches[0]
