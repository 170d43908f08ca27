"""Every failure switch of the fake does what it says. Were it not so, what is tested with them would prove nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from transfer_peers import layout_of, make_pool

from kv_transfer.agent import PeerLost, TransferError, WriteState
from kv_transfer.checksum import Pool
from kv_transfer.fake_agent import Fabric, FakeAgent, Faults


@dataclass
class Met:
    agent: FakeAgent
    peer: FakeAgent
    pool: Pool  # the peer's, zeros before anything lands

    @property
    def faults(self) -> Faults:
        return self.agent.faults

    @property
    def landed(self) -> bool:
        return bool(self.pool.any())

    def post(self) -> int:
        return self.agent.post_write("peer", [(0, 0), (1, 1)])


@pytest.fixture
def met() -> Met:
    fabric, pool = Fabric(), make_pool(fill=0)
    agent, peer = FakeAgent("agent", make_pool(), fabric), FakeAgent("peer", pool, fabric)
    agent.add_peer(layout_of(pool).hello("peer", peer.metadata()))
    return Met(agent, peer, pool)


def test_the_handshake_fails(met: Met) -> None:
    met.peer.faults.refuse_handshake = True
    with pytest.raises(TransferError, match="cannot be added"):
        met.peer.add_peer(layout_of(make_pool()).hello("agent", met.agent.metadata()))


@pytest.mark.parametrize("lands", [False, True])
def test_a_post_fails(met: Met, lands: bool) -> None:
    met.faults.fail_posts, met.faults.land_after_failure = True, lands
    with pytest.raises(TransferError):
        met.post()
    assert not met.landed
    met.agent.take_notifications()
    assert met.landed == lands


@pytest.mark.parametrize("lands", [False, True])
def test_a_state_raises(met: Met, lands: bool) -> None:
    met.faults.polls_until_done, met.faults.land_after_failure = 5, lands
    handle = met.post()
    met.faults.fail_polls = True
    with pytest.raises(TransferError):
        met.agent.poll(handle)
    met.agent.release(handle)
    met.agent.take_notifications()
    assert met.landed == lands


def test_a_write_completes_after_so_many_polls(met: Met) -> None:
    met.faults.polls_until_done = 3
    handle = met.post()
    states = [met.agent.poll(handle) for _ in range(4)]
    assert states == [WriteState.IN_PROGRESS] * 2 + [WriteState.DONE] * 2
    assert met.landed


def test_a_write_never_completes(met: Met) -> None:
    met.faults.never_complete = True
    handle = met.post()
    assert {met.agent.poll(handle) for _ in range(100)} == {WriteState.IN_PROGRESS}
    assert not met.landed
    met.faults.never_complete = False
    assert met.agent.poll(handle) is WriteState.DONE


@pytest.mark.parametrize("lands", [False, True])
def test_a_released_write_lands(met: Met, lands: bool) -> None:
    met.faults.polls_until_done, met.faults.write_after_release = 5, lands
    met.agent.release(met.post())
    assert not met.landed
    met.agent.take_notifications()
    assert met.landed == lands


@pytest.mark.parametrize("lands", [False, True])
def test_a_dead_peers_write_lands_when_its_target_looks(met: Met, lands: bool) -> None:
    met.faults.never_complete, met.faults.land_after_death = True, lands
    met.post()
    met.agent.close()
    assert not met.landed
    met.peer.take_notifications()
    assert met.landed == lands


def test_bytes_land_though_nobody_polls(met: Met) -> None:
    met.faults.never_complete = True
    handle = met.post()
    met.agent.land_in_flight()
    assert met.landed
    assert met.agent.poll(handle) is WriteState.IN_PROGRESS  # it has not heard of it


def test_what_is_sent_to_the_dead_is_lost(met: Met) -> None:
    met.faults.polls_until_done = 5
    handle = met.post()
    met.peer.close()
    with pytest.raises(PeerLost):
        met.agent.poll(handle)
    with pytest.raises(PeerLost):
        met.agent.send_notification("peer", b"hello")


def test_notifications_are_lost_doubled_held_and_altered(met: Met) -> None:
    met.faults.lose_notifications = True
    met.agent.send_notification("peer", b"lost")
    met.faults.lose_notifications, met.faults.duplicate_notifications = False, True
    met.agent.send_notification("peer", b"twice")
    met.faults.duplicate_notifications = False
    met.faults.alter_notification = lambda payload: [payload.upper(), b"and more"]
    met.agent.send_notification("peer", b"loud")
    met.peer.faults.hold_notifications = True
    assert met.peer.take_notifications() == []
    met.peer.faults.hold_notifications = False
    assert [payload for _, payload in met.peer.take_notifications()] == [b"twice", b"twice", b"LOUD", b"and more"]


def test_bytes_arrive_wrong(met: Met) -> None:
    met.faults.flip_bit = True
    met.post()
    assert (met.pool[:2, 0] ^ 1 == make_pool()[:2, 0]).all()
    assert (met.pool[:2, 1:] == make_pool()[:2, 1:]).all()
