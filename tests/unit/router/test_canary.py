"""Which canaries are sent, and what /health makes of them, with a core that answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from diptych.errors import LegFailed
from diptych.messages import LegStats, Role, Update, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from router.bookings import Bookings
from router.canary import DEADLINE_MS, MAX_PROBES, PROBE_DEADLINE_MS, Canary
from router.fleet import Compatibility, Fleet
from router.requests import Report, TokenRequest
from router.worker_link import WorkerLink


class StillLink(WorkerLink):
    def __init__(self, worker_id: str) -> None:
        self.record = WorkerRecord(
            worker_id=worker_id,
            role=Role(worker_id.split("-")[0]),
            address="",
            state=WorkerState.READY,
            model="tiny",
            fingerprint="fp",
            block_size=16,
            num_blocks=64,
            block_bytes=1,
            max_context=1_024,
            started_at=0.0,
        )
        self.connected, self.stats = True, WorkerStats(blocks_free=64)


class Core:
    """Answers through the first worker of each role that may be used; `broken` ones fail, `hanging` ones do not answer.

    KV does not get to those that are `deaf`: decode answers alone, or, if it came `damaged`, computes the prompt again.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.broken: set[str] = set()
        self.hanging: set[str] = set()
        self.deaf: set[str] = set()
        self.damaged = False
        self.deadlines_ms: list[int] = []
        self.through: list[tuple[str, ...]] = []
        self.on_end: Callable[[TokenRequest, LegFailed | None], None] = lambda _request, _error: None

    async def generate(self, request: TokenRequest, report: Report) -> AsyncGenerator[Update, None]:
        self.through.append(request.through)
        self.deadlines_ms.append(request.deadline_ms)
        await asyncio.sleep(0)
        views = self.fleet.views(Bookings(), request.through)
        pair = [next((v.worker_id for v in views if v.role is role), "") for role in (Role.PREFILL, Role.DECODE)]
        if self.hanging & set(pair):
            await asyncio.Event().wait()
        is_whole = not self.deaf & set(pair)
        report.prefill_id, report.decode_id = pair if is_whole or self.damaged else ["", pair[1]]
        report.decode = LegStats(transfer_bytes=4_096 * is_whole) if report.prefill_id else None
        error = LegFailed(f"{pair} failed") if self.broken & set(pair) else None
        self.on_end(request, error)
        if error:
            raise error
        yield Update(request.request_id, 0, 0, [1])


@asynccontextmanager
async def running(
    *worker_ids: str,
    uses_prefill: bool = True,
    interval_s: float = 0.0,
    clock: Callable[[], float] | None = None,
    prepare: Callable[[Core], None] = lambda core: None,
) -> AsyncIterator[tuple[Fleet, Core, Canary]]:
    fleet = Fleet("router", Compatibility("fp", 16), 3.0, make_logger("test", stream=io.StringIO()))
    core = Core(fleet)
    prepare(core)
    clock = clock or asyncio.get_running_loop().time
    canary = Canary(fleet, 16, interval_s, clock, uses_prefill, num_open=dict, degraded=list)
    core.on_end = canary.ended
    for worker_id in worker_ids:
        fleet.adopt(StillLink(worker_id))
    task = asyncio.create_task(canary.run(core))
    try:
        yield fleet, core, canary
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 10.0
    while not holds():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def proved(canary: Canary) -> tuple[int, int]:
    details = canary.view().details
    return details["prefill_workers"], details["decode_workers"]


async def test_every_worker_gets_a_canary_of_its_own() -> None:
    async with running("prefill-1", "prefill-2", "decode-1", "decode-2", "decode-3") as (_, core, canary):
        await until(lambda: proved(canary) == (2, 3))
        assert sorted(worker_id for through in core.through for worker_id in through) == [
            "decode-1",
            "decode-2",
            "decode-3",
            "prefill-1",
            "prefill-2",
        ]
        assert canary.view().healthy


async def test_a_cluster_of_decode_workers_alone_is_proved_too() -> None:
    async with running("decode-1") as (_, core, canary):
        await until(lambda: proved(canary) == (0, 1))
        assert core.through[0] == ("decode-1",)


async def test_a_worker_that_joins_is_probed_before_clients_get_it() -> None:
    async with running("prefill-1", "decode-1") as (fleet, core, canary):
        await until(lambda: proved(canary) == (1, 1))
        core.broken = {"decode-2"}
        fleet.adopt(StillLink("decode-2"))
        fleet.changed.set()
        await until(lambda: bool(canary.view().details["probing"].get("decode-2")))
        assert {view.worker_id for view in fleet.views(Bookings())} == {"prefill-1", "decode-1"}
        assert proved(canary) == (1, 1)
        assert "failed" in canary.view().details["probing"]["decode-2"]
        core.broken = set()
        await until(lambda: proved(canary) == (1, 2))
        assert {view.worker_id for view in fleet.views(Bookings())} == {"prefill-1", "decode-1", "decode-2"}
        assert canary.view().details["probing"] == {}


async def test_one_broken_worker_of_the_first_two_does_not_hide_the_other() -> None:
    async with running("prefill-1", "decode-1", "decode-2") as (_, core, canary):
        core.broken = {"decode-2"}
        await until(lambda: proved(canary) == (1, 1))
        assert set(canary.view().details["probing"]) == {"decode-2"}


async def test_prefill_workers_that_are_never_used_need_no_proof() -> None:
    async with running("prefill-1", "decode-1", uses_prefill=False) as (_, core, canary):
        await until(lambda: proved(canary) == (1, 1))
        assert core.through == [("decode-1",)]


async def test_without_a_decode_worker_nothing_is_sent() -> None:
    async with running("prefill-1") as (_, core, canary):
        await asyncio.sleep(0.05)
        assert core.through == []
        assert not canary.view().ready


@pytest.mark.parametrize("damaged", [False, True])
async def test_an_answer_that_decode_computed_alone_proves_nobody(damaged: bool) -> None:
    def prepare(core: Core) -> None:
        core.deaf, core.damaged = {"decode-1"}, damaged

    async with running("prefill-1", "decode-1", prepare=prepare) as (fleet, core, canary):
        await until(lambda: len(core.through) > 2 and all(canary.view().details["probing"].values()))
        assert proved(canary) == (0, 0)
        assert "KV" in canary.view().details["probing"]["decode-1"]
        assert canary.view().healthy  # it does answer
        assert {view.worker_id for view in fleet.views(Bookings())} == {"prefill-1", "decode-1"}  # nobody is better
        core.deaf = set()
        await until(lambda: proved(canary) == (1, 1))


async def test_a_decode_worker_that_kv_does_not_get_to_stays_out() -> None:
    async with running("prefill-1", "decode-1") as (fleet, core, canary):
        await until(lambda: proved(canary) == (1, 1))
        core.deaf = {"decode-2"}
        fleet.adopt(StillLink("decode-2"))
        fleet.changed.set()
        await until(lambda: bool(canary.view().details["probing"].get("decode-2")))
        assert {view.worker_id for view in fleet.views(Bookings())} == {"prefill-1", "decode-1"}


async def test_a_worker_that_hangs_leaves_the_others_their_canaries() -> None:
    """The cluster is idle: only canaries keep it healthy."""
    now_s = 0.0
    async with running("prefill-1", "decode-1", interval_s=10.0, clock=lambda: now_s) as (fleet, core, canary):
        await until(lambda: proved(canary) == (1, 1))
        core.hanging = {"decode-2"}
        fleet.adopt(StillLink("decode-2"))
        fleet.changed.set()
        await until(lambda: core.through[-1] == ("decode-2",))
        assert core.deadlines_ms[-1] == PROBE_DEADLINE_MS < DEADLINE_MS
        for _ in range(5):
            core.through.clear()
            now_s += 10.0
            await until(lambda: bool(core.through))
            await until(lambda: canary._regular is not None and canary._regular.done())
            assert core.through[-1] == ()
            assert canary.view().healthy


async def test_a_regular_canary_that_hangs_leaves_newcomers_theirs() -> None:
    now_s = 0.0
    async with running("prefill-1", "decode-1", interval_s=10.0, clock=lambda: now_s) as (fleet, core, canary):
        await until(lambda: proved(canary) == (1, 1))
        core.hanging, now_s = {"decode-1"}, 10.0
        await until(lambda: core.through[-1] == ())
        fleet.adopt(StillLink("decode-2"))
        fleet.changed.set()
        await until(lambda: proved(canary) == (1, 2))
        now_s = 15.0
        fleet.changed.set()
        await asyncio.sleep(0)
        assert core.through.count(()) == 1  # one at a time


async def test_a_place_that_a_probe_leaves_is_filled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.canary.RETRY_S", math.inf)
    workers = [f"decode-{index}" for index in range(3 * MAX_PROBES)]
    async with running(*workers) as (_, _, canary):
        await until(lambda: proved(canary) == (0, len(workers)))
