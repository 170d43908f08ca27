"""Routers that place in turn, on a log in memory that answers, refuses, hangs and fails as the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from fake_log import FakeLog, FakeLogServer
from placing import World, sharing
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from diptych.errors import NoCapacity
from diptych.messages import Role
from router.attempts import Attempts
from router.placer import Booked
from router.requests import Report
from router.sharing.load import Statement
from router.sharing.reservations import MAX_BATCH, MAX_TURNS

WORKERS = [f"{role}-{number}" for role in Role for number in range(4)]
PATIENT_S = 5.0  # so that what a test measures is not this machine
NOTHING = Statement(1, [])


@pytest.fixture
def server() -> FakeLogServer:
    return FakeLogServer(clock=time.monotonic)


def worlds(server: FakeLogServer, count: int, wait_s: float = PATIENT_S) -> list[World]:
    return [
        World(*WORKERS, seed=17 * number + 1, log=FakeLog(server, f"r{number}"), wait_s=wait_s)
        for number in range(count)
    ]


async def burst(routers: list[World], count: int, seed: int = 0) -> list[Booked]:
    """So many identical prompts in all, at the same moment."""
    return await asyncio.gather(*(routers[i % len(routers)].place(f"r{i}", seed) for i in range(count)))


async def test_alone_nobody_is_asked_on_the_way(server: FakeLogServer) -> None:
    [world] = worlds(server, 1)
    async with sharing(world):
        await asyncio.sleep(0)
        before = server.num_calls
        for number in range(5):
            await world.place(seed=number)
        assert server.num_calls == before
    assert world.outcomes() == {"alone": 5}


async def test_a_second_router_is_noticed_and_the_first_one_sees_its_load_at_once(server: FakeLogServer) -> None:
    first, second = worlds(server, 2)
    async with sharing(first, second):
        booked = await second.place(seed=1)
        other = await first.place(seed=2)
        assert first.bookings.load(booked.placement.prefill_id).tokens == 100
        assert other.placement.prefill_id != booked.placement.prefill_id
        assert other.placement.decode_id != booked.placement.decode_id
        again = await first.place(seed=1)
        assert again.placement.matched_tokens == 96  # the other router's prompt will be cached
    assert (first.outcomes(), second.outcomes()) == ({"reserved": 2}, {"reserved": 1})
    assert second.bookings.total == 100 + 1 + 7


@pytest.mark.parametrize("count", [2, 4])
async def test_routers_together_place_as_one_would(server: FakeLogServer, count: int) -> None:
    routers = worlds(server, count)
    async with sharing(*routers):
        booked = await burst(routers, 32)
    for role in Role:
        given = [each.placement.prefill_id if role is Role.PREFILL else each.placement.decode_id for each in booked]
        assert {given.count(name) for name in WORKERS if name.startswith(role)} == {8}
    assert [world.outcomes() for world in routers] == [{"reserved": 32 // count}] * count


async def test_a_burst_larger_than_a_batch_takes_several_calls(server: FakeLogServer) -> None:
    routers = worlds(server, 2)
    async with sharing(*routers):
        before = len(server.entries)
        booked = await asyncio.gather(*(routers[0].place(f"r{i}", i) for i in range(3 * MAX_BATCH)))
        with_marks = [entry for entry in server.entries[before:] if entry.marks]
    assert len(with_marks) == 3
    assert len(booked) == 3 * MAX_BATCH


async def test_releases_are_told_in_the_background_and_all_agree_on_nothing(server: FakeLogServer) -> None:
    routers = worlds(server, 3)
    async with sharing(*routers):
        for each in await burst(routers, 12):
            each.booking.release()
        await _until(lambda: _agree(routers))
        assert not any(sum(routers[0].bookings.load(name)) for name in WORKERS)


async def test_a_router_that_leaves_says_so(server: FakeLogServer) -> None:
    staying, leaving = worlds(server, 2)
    async with sharing(staying):
        async with sharing(leaving, meet=False):
            await _until(lambda: staying.others.routers == ["r1"])
            await leaving.place()
            await _until(lambda: any(staying.others.load(name).tokens for name in WORKERS))
        await _until(lambda: not staying.others.routers)
    assert not any(staying.others.load(name).tokens for name in WORKERS)


# --- Redis is slow, gone or refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RedisConnectionError("gone"), "unreachable"),
        (OSError("gone"), "unreachable"),
        (OutOfMemoryError("OOM command not allowed"), "out_of_memory"),
        (ReadOnlyError("READONLY You can't write against a read only replica."), "read_only"),
    ],
)
async def test_a_failure_leaves_the_choice_as_it_was_made_and_keeps_the_others_off(
    server: FakeLogServer, error: Exception, reason: str
) -> None:
    routers = first, second = worlds(server, 2)
    async with sharing(*routers):
        server.error = error
        booked = await burst([first], 4)
        assert {each.placement.prefill_id for each in booked} == set(WORKERS[:4])  # it still sees its own
        calls = server.num_calls
        await first.place(seed=1)
        assert server.num_calls == calls
        assert reason in first.reservations.degraded  # type: ignore[union-attr]
        server.error = None
        await _until(lambda: all(not world.talk.failing for world in routers))
        await _until(lambda: _agree(routers))
        assert first.outcomes()["skipped"] >= 1
        assert second.others.load(booked[0].placement.prefill_id).tokens == 100


async def test_a_hanging_redis_is_waited_for_once_and_no_longer_than_said(server: FakeLogServer) -> None:
    routers = first, _ = worlds(server, 2, wait_s=0.02)
    async with sharing(*routers):
        server.held = asyncio.Event()
        calls = server.num_calls
        await burst([first], 2 * MAX_BATCH)  # two batches: those behind are not asked for at all
        for number in range(20):
            await first.place(seed=number)
        assert first.outcomes() == {"timeout": 2 * MAX_BATCH, "skipped": 20}
        assert server.num_calls - calls <= 4  # of both routers' backgrounds all but one
        waited = first.registry.get_sample_value("diptych_reservation_wait_seconds_sum", {"model_name": "tiny"})
        assert waited is not None
        assert waited + 1e-6 >= 0.02 * 2 * MAX_BATCH
        server.held.set()
        server.held = None
        await _until(lambda: not first.talk.failing and _agree(routers))
        await first.place(seed=99)
        assert first.outcomes()["reserved"] == 1


async def test_who_is_always_second_is_recorded_in_the_end(server: FakeLogServer) -> None:
    class Unlucky(FakeLog):
        async def exchange(self, seen, statement, marks, *, compare):  # type: ignore[no-untyped-def]
            if marks and compare:
                await FakeLog(server, "quicker").exchange(seen, NOTHING, marks, compare=False)
            return await super().exchange(seen, statement, marks, compare=compare)

    world = World(*WORKERS, log=Unlucky(server, "r0"), wait_s=PATIENT_S)
    async with sharing(world):
        await FakeLog(server, "quicker").exchange(b"0-0", NOTHING, (), compare=False)
        await _until(lambda: bool(world.others.routers))
        await world.place()
    assert world.outcomes() == {"contended": 1}
    refused = world.registry.get_sample_value("diptych_reservation_refusals_total", {"model_name": "tiny"})
    assert refused == MAX_TURNS - 1
    assert world.bookings.total == 100 + 1 + 7  # of all the choices one stands


# --- requests that go away, workers that go away ----------------------------------------------------------------------


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing(server: FakeLogServer) -> None:
    routers = first, _ = worlds(server, 2)
    async with sharing(*routers):
        server.held_turns = asyncio.Event()
        placing = asyncio.create_task(first.place())
        staying = asyncio.create_task(first.place("other"))
        await _until(lambda: first.bookings.total > 0)
        placing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await placing
        server.held_turns.set()
        booked = await staying
        booked.booking.release()
        assert first.bookings.total == 0
        await _until(lambda: _agree(routers))


async def test_a_worker_that_leaves_meanwhile_is_not_what_was_chosen(server: FakeLogServer) -> None:
    routers = first, _ = worlds(server, 2)
    async with sharing(*routers):
        server.held_turns = asyncio.Event()
        placing = asyncio.create_task(first.place())
        await _until(lambda: first.bookings.total > 0)
        [chosen] = first.bookings.tokens
        first.fleet.link(chosen).connected = False
        server.held_turns.set()
        booked = await placing
        assert booked.placement.prefill_id != chosen
        booked.booking.release()
        assert first.bookings.total == 0


async def test_nowhere_to_go_is_told_to_whom_it_concerns(server: FakeLogServer) -> None:
    nobody = World(log=FakeLog(server, "r0"), wait_s=PATIENT_S)
    somebody = World(*WORKERS, log=FakeLog(server, "r1"), wait_s=PATIENT_S)
    async with sharing(nobody, somebody):
        with pytest.raises(NoCapacity):
            await nobody.place()
        assert await somebody.place()


async def test_a_canary_asks_nobody(server: FakeLogServer) -> None:
    routers = first, _ = worlds(server, 2)
    async with sharing(*routers):
        server.held_turns = asyncio.Event()
        canary, hashes = first.request("canary", canary=True)
        await first.placer.place(canary, hashes, Attempts(3), Report())
        server.held_turns.set()
    assert first.outcomes() == {}


async def test_who_waits_when_the_router_stops_is_placed_all_the_same(server: FakeLogServer) -> None:
    routers = first, _ = worlds(server, 2)
    async with sharing(*routers):
        server.held_turns = asyncio.Event()
        placing = asyncio.create_task(first.place())
        await _until(lambda: first.bookings.total > 0)
    assert await placing


async def test_a_log_that_was_flushed_is_filled_again(server: FakeLogServer) -> None:
    routers = worlds(server, 2)
    async with sharing(*routers):
        booked = await burst(routers, 6)
        server.flush()
        late = World(*WORKERS, seed=99, log=FakeLog(server, "late"), wait_s=PATIENT_S)
        async with sharing(late, meet=False):
            await _until(lambda: len(late.others.routers) == 2)
            await _until(lambda: _agree([*routers, late]))
        assert len(booked) == 6


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30.0):
        while not condition():  # noqa: ASYNC110 (what is awaited is in several routers)
            await asyncio.sleep(0.005)


def _agree(routers: Sequence[World]) -> bool:
    """Every router believes what all of them have booked."""
    truth = {
        name: tuple(map(sum, zip(*(each.bookings.own(name) for each in routers), strict=True))) for name in WORKERS
    }
    return all(world.bookings.load(name) == truth[name] for world in routers for name in WORKERS)
