import asyncio

import pytest

from diptych.errors import LegFailed
from diptych.messages import Frame, Update, WorkerStats
from diptych.worker.outbox import Outbox


def make(lost: list[str] | None = None) -> Outbox:
    return Outbox("worker-1", WorkerStats, 10_000, (lost if lost is not None else []).append)


def update(number: int) -> Update:
    return Update(f"request-{number}", 0, 0, [number])


async def test_all_updates_between_two_frames_travel_in_one() -> None:
    outbox = make()
    frames = outbox.frames("router-1")
    first = await anext(frames)
    assert first == Frame("worker-1", 0, [], WorkerStats())
    outbox.send("router-1", [update(1), update(2)])
    outbox.send("router-1", [update(3)])
    frame = await anext(frames)
    assert (frame.sequence, [one.token_ids for one in frame.updates]) == (1, [[1], [2], [3]])


async def test_every_router_gets_only_its_own() -> None:
    outbox = make()
    one, two = outbox.frames("router-1"), outbox.frames("router-2")
    await anext(one), await anext(two)
    outbox.send("router-2", [update(2)])
    outbox.send("router-1", [update(1)])
    assert [frame.updates[0].token_ids for frame in (await anext(one), await anext(two))] == [[1], [2]]


async def test_work_for_a_router_that_does_not_listen_is_refused() -> None:
    outbox = make()
    with pytest.raises(LegFailed, match="subscribe first"):
        outbox.require("router-1")
    frames = outbox.frames("router-1")
    await anext(frames)
    outbox.require("router-1")


async def test_a_router_that_goes_is_reported_once() -> None:
    lost: list[str] = []
    outbox = make(lost)
    frames = outbox.frames("router-1")
    await anext(frames)
    await frames.aclose()  # type: ignore[attr-defined]
    assert lost == ["router-1"]
    outbox.send("router-1", [update(1)])  # nobody there: dropped
    with pytest.raises(LegFailed):
        outbox.require("router-1")


async def test_a_new_subscription_replaces_the_old_whose_requests_are_lost() -> None:
    lost: list[str] = []
    outbox = make(lost)
    old = outbox.frames("router-1")
    await anext(old)
    new = outbox.frames("router-1")
    assert (await anext(new)).sequence == 0
    assert lost == ["router-1"]
    assert [frame async for frame in old] == []
    assert lost == ["router-1"]  # the old stream's end says nothing about the new one
    outbox.send("router-1", [update(1)])
    assert (await anext(new)).updates == [update(1)]


async def test_silence_is_broken_by_a_heartbeat_with_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.worker.outbox.HEARTBEAT_S", 0.01)
    outbox = Outbox("worker-1", WorkerStats, 1, lambda _: None)
    frames = outbox.frames("router-1")
    async with asyncio.timeout(5):
        assert [frame.sequence for frame in [await anext(frames) for _ in range(3)]] == [0, 1, 2]


async def test_what_was_sent_before_the_end_is_still_delivered() -> None:
    outbox = make()
    frames = outbox.frames("router-1")
    await anext(frames)
    outbox.send("router-1", [update(1)])
    outbox.close()
    assert [frame.updates for frame in [frame async for frame in frames]] == [[update(1)]]
