"""Who is placeable, over links that are not connected to anything real."""

from __future__ import annotations

import io
from typing import Any

import pytest

import router.fleet
from diptych.errors import LegFailed
from diptych.messages import LinkStats, Role, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from router.bookings import Bookings
from router.fleet import Compatibility, Fleet
from router.placement import Placement, WorkerView


class Link:
    """A link whose frame stream the test switches on and off."""

    def __init__(self, record: WorkerRecord, router_id: str, silence_s: float, on_change: Any, *others: Any) -> None:
        self.record, self._on_change = record, on_change
        self.connected, self.closed = True, False
        self.stats = WorkerStats(blocks_free=8)
        self.num_open = self.num_tasks = 0

    def lose(self) -> None:
        self.connected = False
        self._on_change()

    async def close(self, error: LegFailed) -> None:
        self.closed = True


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(router.fleet, "WorkerLink", Link)
    return Fleet("router-1", Compatibility("fp", 16), 3.0, make_logger("test", stream=io.StringIO()))


def record(worker_id: str = "decode-1", **changes: Any) -> WorkerRecord:
    fields: dict[str, Any] = {
        "worker_id": worker_id,
        "role": Role.DECODE,
        "address": "127.0.0.1:1",
        "state": WorkerState.READY,
        "model": "tiny",
        "fingerprint": "fp",
        "block_size": 16,
        "num_blocks": 8,
        "block_bytes": 1,
        "max_context": 128,
        "started_at": 0.0,
    }
    return WorkerRecord(**{**fields, **changes})


def placeable(fleet: Fleet) -> list[str]:
    return [view.worker_id for view in fleet.views(Bookings())]


async def test_a_worker_is_placeable_while_it_is_ready_and_its_frames_come(fleet: Fleet) -> None:
    fleet.joined(record())
    assert placeable(fleet) == ["decode-1"]
    fleet.joined(record(state=WorkerState.DRAINING))
    assert placeable(fleet) == []
    fleet.joined(record())
    fleet.link("decode-1").lose()
    assert placeable(fleet) == []


async def test_a_worker_that_lost_only_its_lease_goes_on_serving(fleet: Fleet) -> None:
    """Redis refusing writes says nothing about a worker whose frames come."""
    fleet.joined(record())
    fleet.left("decode-1")
    assert placeable(fleet) == ["decode-1"]
    fleet.joined(record())  # the lease is back
    fleet.link("decode-1").lose()
    assert fleet.link("decode-1")  # only the stream is gone: it may come back


async def test_a_worker_without_lease_and_frames_is_given_up(fleet: Fleet) -> None:
    fleet.joined(record())
    link = fleet.link("decode-1")
    fleet.left("decode-1")
    link.lose()
    with pytest.raises(LegFailed):
        fleet.link("decode-1")
    await fleet.close()
    assert link.closed  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", [{"block_size": 32}, {"fingerprint": "other"}])
async def test_a_worker_that_computes_something_else_is_refused_with_the_reason(
    fleet: Fleet, changes: dict[str, Any]
) -> None:
    fleet.joined(record(**changes))
    assert placeable(fleet) == []
    assert str(next(iter(changes.values()))) in fleet.refused["decode-1"]
    fleet.left("decode-1")
    assert fleet.refused == {}


def view_of(fleet: Fleet, bookings: Bookings) -> WorkerView:
    (view,) = fleet.views(bookings)
    return view


async def test_a_view_is_what_was_reported_or_booked_whichever_is_more(fleet: Fleet) -> None:
    fleet.joined(record())
    bookings = Bookings()
    booking = bookings.book(Placement("", "decode-1", 1.0, 0, "configured"), 100, 7)
    view = view_of(fleet, bookings)
    assert (view.queued_prefill_tokens, view.num_running, view.available_blocks) == (100, 1, 1)
    fleet.link("decode-1").stats = WorkerStats(waiting_prefill_tokens=200, num_running=3, num_waiting=1, blocks_free=8)
    view = view_of(fleet, bookings)
    assert (view.queued_prefill_tokens, view.num_running, view.available_blocks) == (200, 4, 1)
    booking.release()
    assert view_of(fleet, bookings).available_blocks == 8


async def test_a_view_is_made_anew_only_when_something_has_changed(fleet: Fleet) -> None:
    fleet.joined(record("decode-1"))
    fleet.joined(record("decode-2"))
    bookings = Bookings()
    before = fleet.views(bookings)
    bookings.book(Placement("", "decode-2", 1.0, 0, "configured"), 100, 7)
    after = fleet.views(bookings)
    assert after[0] is before[0]
    assert after[1] is not before[1]
    fleet.link("decode-1").stats = WorkerStats(blocks_free=5)
    assert fleet.views(bookings)[0].available_blocks == 5
    fleet.joined(record("decode-1", num_blocks=3))
    assert fleet.views(bookings)[0].available_blocks == 3


async def test_what_changes_while_a_worker_is_away_is_seen_when_it_is_back(fleet: Fleet) -> None:
    fleet.joined(record())
    bookings = Bookings()
    booking = bookings.book(Placement("", "decode-1", 1.0, 0, "configured"), 100, 7)
    assert view_of(fleet, bookings).num_running == 1
    fleet.joined(record(state=WorkerState.DRAINING))
    booking.release()
    assert fleet.views(bookings) == []
    fleet.joined(record())
    assert view_of(fleet, bookings).num_running == 0


async def test_links_and_the_cost_of_a_batch_are_learnt_from_reports(fleet: Fleet) -> None:
    fleet.joined(record())
    links = {"decode-9": LinkStats(2e9, 1.0), "decode-8": LinkStats(1e9, 0.1)}
    fleet.link("decode-1").stats = WorkerStats(links=links, step_budget=64, num_running=4, decode_step_ms=20.0)
    view = view_of(fleet, Bookings())
    assert view.links == links
    assert view.best_link.bytes_per_s == pytest.approx(2e9, rel=0.03)
    assert view.best_link.latency_ms == pytest.approx(0.1)
    assert view.chunk_tokens == 64
    assert (view.decode_base_ms, view.decode_ms_per_sequence) == (0.0, pytest.approx(5.0, rel=0.03))
    for running in (8, 2, 8, 2):
        fleet.link("decode-1").stats = WorkerStats(num_running=running, decode_step_ms=10.0 + running)
        view = view_of(fleet, Bookings())
    assert view.decode_ms_per_sequence < 2.0
    assert view.decode_base_ms > 5.0
