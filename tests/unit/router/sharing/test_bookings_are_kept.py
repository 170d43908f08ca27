"""No booking outlives a placement that failed: wherever it is cancelled, and whatever raises on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import pytest
from fake_log import FakeLog, FakeLogServer
from placing import World, sharing

from diptych.errors import NoCapacity
from diptych.messages import Role
from router.attempts import Attempts
from router.requests import Report
from router.sharing.load import Statement
from router.sharing.log import Answer

WORKERS = [f"{role}-{number}" for role in Role for number in range(2)]
PATIENT_S = 5.0
REFUSALS = 2  # before a placement is recorded
MAX_STEPS = 200


class BusyLog(FakeLog):
    """Others are first now and then; `on_turn` is called while this router asks."""

    def __init__(self, server: FakeLogServer) -> None:
        super().__init__(server, "us")
        self._of_server = server
        self.refusals = 0
        self.on_turn: Callable[[], None] = lambda: None

    async def exchange(
        self, seen: bytes, statement: Statement | None, marks: Collection[str], *, compare: bool
    ) -> Answer:
        if marks and compare:
            self.on_turn()
            if self.refusals:
                self.refusals -= 1
                await FakeLog(self._of_server, "rival").exchange(b"0-0", Statement(1, []), marks, compare=False)
        return await super().exchange(seen, statement, marks, compare=compare)


class Busy:
    """A router, and a rival it has heard of."""

    def __init__(self) -> None:
        server = FakeLogServer(clock=asyncio.get_running_loop().time)
        self.log = BusyLog(server)
        self.world = World(*WORKERS, log=self.log, wait_s=PATIENT_S)
        self._rival = FakeLog(server, "rival")

    async def meet(self) -> None:
        await self._rival.exchange(b"0-0", Statement(1, []), (), compare=False)
        await self.world.talk.exchange()
        assert not self.world.talk.is_alone

    def lose(self, *worker_ids: str) -> None:
        for worker_id in worker_ids:
            self.world.fleet.link(worker_id).connected = False


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
async def test_wherever_it_is_cancelled(alone: bool, leaves: bool) -> None:
    """After each number of turns of the loop, until it is placed before it can be cancelled."""
    busy = Busy()
    world = busy.world
    async with sharing(world):
        for num_steps in range(MAX_STEPS):
            await busy.meet()
            busy.log.refusals = REFUSALS
            for name in WORKERS:
                world.fleet.link(name).connected = True
            busy.log.on_turn = (lambda: busy.lose("decode-0")) if leaves else lambda: None
            request, hashes = world.request(f"r{num_steps}", num_steps)
            work = world.placer.place(request, hashes, Attempts(3), Report(), alone=alone)
            placing = asyncio.create_task(work)
            for _ in range(num_steps):
                await asyncio.sleep(0)
            if placing.done():
                (await placing).booking.release()
                assert world.bookings.total == 0
                break
            placing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await placing
            assert world.bookings.total == 0, num_steps
        else:
            pytest.fail("it is never placed")
    assert num_steps > 2 * REFUSALS


async def test_nobody_is_left_when_a_worker_leaves_while_others_are_asked() -> None:
    busy = Busy()
    async with sharing(busy.world):
        await busy.meet()
        busy.log.on_turn = lambda: busy.lose(*WORKERS)
        with pytest.raises(NoCapacity):
            await busy.world.place()
    assert busy.world.bookings.total == 0


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("where", ["index.guess", "fleet.is_placeable", "metrics.placed", "told"])
async def test_whatever_raises(shares: bool, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    busy = Busy()
    world = busy.world if shares else World(*WORKERS)
    target = {
        "index.guess": "router.prefix_index.PrefixIndex.guess",
        "fleet.is_placeable": "router.fleet.Fleet.is_placeable",
        "metrics.placed": "router.placement_metrics.PlacementMetrics.placed",
        "told": "router.placer._told",
    }[where]
    async with sharing(world):
        if shares:
            await busy.meet()
        with monkeypatch.context() as patched:
            patched.setattr(target, fail)
            with pytest.raises(RuntimeError):
                await world.place()
        assert world.bookings.total == 0
        (await world.place()).booking.release()  # and nothing tentative is left behind
    assert world.bookings.total == 0
