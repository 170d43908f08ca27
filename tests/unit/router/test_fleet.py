"""Who is placeable, over links that are not connected to anything real."""

from __future__ import annotations

import io
from typing import Any

import pytest

import router.fleet
from diptych.errors import LegFailed
from diptych.messages import Role, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from router.bookings import Bookings
from router.fleet import Compatibility, Fleet


class Link:
    """A link whose frame stream the test switches on and off."""

    def __init__(self, record: WorkerRecord, router_id: str, silence_s: float, on_change: Any, log: Any) -> None:
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
    return [view.worker_id for view in fleet.views({}, Bookings())]


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
