"""What a pair learns about its connection when it meets."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from transfer_peers import layout_of, make_pool

from kv_transfer.agent import TransferError
from kv_transfer.fake_agent import Fabric, FakeAgent, Faults
from kv_transfer.layout import slow_path
from kv_transfer.link_probe import MAX_PROBE_BYTES, LinkProbe
from kv_transfer.outcome import Arrival
from kv_transfer.pump import TransferPump
from kv_transfer.transfer_thread import TransferThread

BLOCK = 1_000_000


class LinkAgent(FakeAgent):
    """Each write takes what a link of 2 GB/s with 3 ms latency takes, on a clock of its own."""

    now = 0.0

    def post_write(self, peer_id: str, pairs: object, notification: bytes | None = None) -> int:
        self.now += 0.003 + len(pairs) * BLOCK / 2e9  # type: ignore[arg-type]
        return super().post_write(peer_id, pairs, notification)  # type: ignore[arg-type]


def test_latency_and_speed_are_told_apart() -> None:
    fabric, pool = Fabric(), make_pool(2, 64)
    agent = LinkAgent("here", pool, fabric)
    there = FakeAgent("there", make_pool(3, 64, fill=0), fabric)
    agent.add_peer(layout_of(pool).hello("there", there.metadata()))
    probe = LinkProbe(agent, "there", (1, 2), BLOCK, lambda: agent.now)
    steps = [probe.step() for _ in range(3)]
    link = steps[-1]
    assert steps[:2] == [None, None]
    assert link is not None
    assert link.bytes_per_s == pytest.approx(2e9)
    assert link.latency_ms == pytest.approx(3.0)
    assert not there._pool[:2].any()  # only the scratch block was written
    assert there._pool[2].any()


def test_no_probe_writes_more_than_its_limit() -> None:
    fabric, pool = Fabric(), make_pool(2, 64)
    for block_bytes, most in ((1 << 10, 16), (4 << 20, 4), (64 << 20, 2)):
        probe = LinkProbe(FakeAgent("here", pool, fabric), "there", (1, 1), block_bytes, lambda: 0.0)
        assert max(probe._counts) == most
        assert most == 2 or most * block_bytes <= MAX_PROBE_BYTES


def test_a_link_that_fails_is_not_measured_and_a_lost_one_is_forgotten() -> None:
    fabric, faults = Fabric(), Faults()
    ours, theirs = make_pool(4), make_pool(4)
    here, there = FakeAgent("here", ours, fabric, faults), FakeAgent("there", theirs, fabric)
    arrivals: list[Arrival] = []
    pump = TransferPump(here, ours.shape[1], ours, arrivals.append, lambda: 0.0, scratch_block=3)
    hello = replace(layout_of(theirs), scratch_block=3).hello("there", there.metadata())
    faults.fail_posts = True
    pump.add_peer(hello, probe=True)
    pump.step()
    assert pump.links == {}
    faults.fail_posts = False
    pump.lose_peer("there")
    pump.add_peer(hello, probe=True)
    for _ in range(5):
        pump.step()
    assert pump.links.keys() == {"there"}
    pump.lose_peer("there")
    assert pump.links == {}


@pytest.mark.parametrize("end", ["raises", "lost"])
def test_a_probe_that_is_given_up_keeps_no_handle(end: str) -> None:
    fabric, faults = Fabric(), Faults(never_complete=True)
    ours, theirs = make_pool(4), make_pool(4)
    here, there = FakeAgent("here", ours, fabric, faults), FakeAgent("there", theirs, fabric)
    pump = TransferPump(here, ours.shape[1], ours, lambda arrival: None, lambda: 0.0, scratch_block=3)
    pump.add_peer(replace(layout_of(theirs), scratch_block=3).hello("there", there.metadata()), probe=True)
    pump.step()
    assert len(here._writes) == 1
    if end == "raises":
        faults.fail_polls = True
        pump.step()
    else:
        pump.lose_peer("there")
    assert not here._writes
    assert pump.links == {}


def test_nobody_is_probed_without_a_scratch_block() -> None:
    fabric, ours = Fabric(), make_pool(4)
    here, there = FakeAgent("here", ours, fabric), FakeAgent("there", make_pool(4), fabric)
    pump = TransferPump(here, ours.shape[1], ours, lambda arrival: None, lambda: 0.0, scratch_block=3)
    pump.add_peer(layout_of(ours).hello("there", there.metadata()), probe=True)
    for _ in range(5):
        pump.step()
    assert pump.links == {}


def test_a_slow_path_is_named() -> None:
    layout = layout_of(make_pool())
    fast, slow = layout.hello("p", b"", ("tcp", "sm", "self")), layout.hello("d", b"", ("tcp", "self"))
    assert slow_path(fast, fast) == ""
    assert "d may not use shared memory" in slow_path(fast, slow)
    elsewhere = layout.hello("d", b"", ("tcp", "self"))
    assert slow_path(fast, type(elsewhere)(**{**_fields(elsewhere), "host": "another machine"})) == ""


def _fields(hello: object) -> dict[str, object]:
    return {name: getattr(hello, name) for name in hello.__struct_fields__}  # type: ignore[attr-defined]


async def test_a_meeting_says_that_the_path_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    fabric, pool, other = Fabric(), make_pool(), make_pool()
    thread = TransferThread(
        "here",
        layout_of(pool),
        pool,
        lambda: FakeAgent("here", pool, fabric),
        lambda arrival: None,
        transports=("tcp",),
    )
    await thread.start()
    FakeAgent("there", other, fabric)
    try:
        await thread.add_peer(layout_of(other).hello("there", b"fake:there", ("tcp", "sm")))
        assert "slow path between here and there" in caplog.text
        with pytest.raises(TransferError):
            await asyncio.wait_for(thread.add_peer(layout_of(other).hello("nobody", b"?")), 5)
    finally:
        await thread.stop()
