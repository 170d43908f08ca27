"""Others being first is not Redis failing: with the time a request really has, on a log that is a round trip away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from math import inf

import pytest
from fake_log import FakeLog, FakeLogServer
from prometheus_client import CollectorRegistry
from virtual_time import run_in_virtual_time

from router.bookings import Bookings
from router.sharing.load import Guess, SharedLoad, Statement, Statements
from router.sharing.log import Answer
from router.sharing.metrics import OUTCOMES, ReservationMetrics
from router.sharing.reservations import Reservations
from router.sharing.talk import WAIT_S, Chosen, Talk

PATIENT_S = 0.25  # the background
LATE_S = 1e-4


class DistantLog:
    """
    Attributes:
        rtt_s: inf: it does not answer.
        is_second: a rival gets in before each turn of this router that may be refused.
    """

    def __init__(self, rtt_s: float) -> None:
        self.rtt_s = rtt_s
        self.is_second = False
        self._server = FakeLogServer(clock=lambda: asyncio.get_running_loop().time())
        self._log, self._rival = FakeLog(self._server, "us"), FakeLog(self._server, "rival")
        self._said = 0

    async def exchange(
        self, seen: bytes, statement: Statement | None, marks: Collection[str], *, compare: bool
    ) -> Answer:
        await self._travel()
        if self.is_second and marks and compare:
            await self.rival_speaks(marks)
        answer = await self._log.exchange(seen, statement, marks, compare=compare)
        await self._travel()
        return answer

    async def rival_speaks(self, marks: Collection[str] = ()) -> None:
        self._said += 1
        await self._rival.exchange(b"0-0", Statement(self._said, []), marks, compare=False)

    async def _travel(self) -> None:
        if self.rtt_s == inf:
            await asyncio.Event().wait()
        await asyncio.sleep(self.rtt_s / 2)


class Anywhere:
    """A claim that always chooses the same worker."""

    def choose(self) -> Chosen:
        return Chosen(("w0",), Guess(("w0",), b""))

    def undo(self) -> None:
        pass


class Router:
    def __init__(self, log: DistantLog) -> None:
        def clock() -> float:
            return asyncio.get_running_loop().time()

        self._registry, others = CollectorRegistry(), SharedLoad()
        self.talk = Talk(
            log,
            Statements(Bookings(others)),
            others,
            lambda *_: None,
            patience_s=PATIENT_S,
            clock=clock,
            quick_s=WAIT_S,
        )
        self.reservations = Reservations(self.talk, ReservationMetrics(self._registry, "m"), WAIT_S, clock)
        self.waited_s: list[float] = []

    async def burst(self, count: int) -> None:
        await asyncio.gather(*(self._one() for _ in range(count)))

    async def _one(self) -> None:
        began = asyncio.get_running_loop().time()
        await self.reservations.reserve(Anywhere())
        self.waited_s.append(asyncio.get_running_loop().time() - began)

    def outcomes(self) -> Counter[str]:
        def count(outcome: str) -> int:
            labels = {"model_name": "m", "outcome": outcome}
            return int(self._registry.get_sample_value("diptych_reservations_total", labels) or 0)

        return +Counter({outcome: count(outcome) for outcome in OUTCOMES})


@asynccontextmanager
async def running(log: DistantLog) -> AsyncIterator[Router]:
    """A router that has heard of its rival, which goes on living."""

    async def live() -> None:
        while True:
            await log.rival_speaks()
            await asyncio.sleep(0.2)

    router = Router(log)
    tasks = [asyncio.create_task(live()), asyncio.create_task(router.reservations.run())]
    while router.talk.is_alone:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield router
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("rtt_ms", [0.3, 0.7, 1.0, 1.4])
def test_contention_keeps_nobody_from_asking(rtt_ms: float) -> None:
    async def contend() -> None:
        log = DistantLog(rtt_ms / 1e3)
        async with running(log) as router:
            log.is_second = True
            for turn in range(1, 6):
                await router.burst(32)
                assert not router.reservations.degraded
                assert router.outcomes() == {"contended": 32 * turn}
            assert max(router.waited_s) <= WAIT_S + LATE_S
            log.is_second = False
            await router.burst(8)
            assert router.outcomes()["reserved"] == 8

    run_in_virtual_time(contend())


@pytest.mark.parametrize("rtt_ms", [0.3, 0.7, 1.0])
def test_those_that_keep_coming_are_asked_for_too(rtt_ms: float) -> None:
    async def contend() -> None:
        log = DistantLog(rtt_ms / 1e3)
        async with running(log) as router, asyncio.TaskGroup() as tasks:
            log.is_second = True
            for _ in range(300):
                tasks.create_task(router.burst(2))
                await asyncio.sleep(0.0003)
                assert not router.reservations.degraded
        assert set(router.outcomes()) == {"contended"}
        assert max(router.waited_s) <= WAIT_S + LATE_S

    run_in_virtual_time(contend())


@pytest.mark.parametrize("rtt_ms", [3.0, 6.0, inf])
@pytest.mark.parametrize("is_second", [False, True])
def test_a_redis_in_whose_time_nobody_can_be_placed_is_not_asked(rtt_ms: float, is_second: bool) -> None:
    """Reading what is new and recording have to fit, even if nobody else is first."""

    async def slow() -> None:
        log = DistantLog(0.0003)
        async with running(log) as router:
            log.rtt_s, log.is_second = rtt_ms / 1e3, is_second
            await router.burst(32)
            assert "timeout" in router.reservations.degraded
            assert router.outcomes() == {"timeout": 32}
            assert max(router.waited_s) <= WAIT_S + LATE_S
            await router.burst(5)
            assert router.outcomes()["skipped"] == 5
            log.rtt_s, log.is_second = 0.0003, False
            async with asyncio.timeout(2.0):
                while router.reservations.degraded:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await router.burst(1)
            assert router.outcomes()["reserved"] == 1

    run_in_virtual_time(slow())


def test_a_redis_that_stops_while_others_are_first_is_found_out_by_the_next() -> None:
    async def stop() -> None:
        log = DistantLog(0.001)
        async with running(log) as router:
            log.is_second = True
            placing = asyncio.create_task(router.burst(4))
            await asyncio.sleep(0.0025)
            log.rtt_s = inf
            await placing
            await router.burst(4)
            assert "timeout" in router.reservations.degraded
            assert max(router.waited_s) <= WAIT_S + LATE_S

    run_in_virtual_time(stop())
