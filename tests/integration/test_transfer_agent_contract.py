"""What every transfer agent must do, run against the fake and against NIXL (two agents in one process).

A peer's death is not here: shared memory stays writable until its process ends (`test_transfer_processes`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from transfer_peers import layout_of, make_pool, meet

from kv_transfer.agent import TransferAgent, TransferError, WriteState
from kv_transfer.checksum import Pool
from kv_transfer.fake_agent import Fabric, FakeAgent
from kv_transfer.layout import KVLayout
from kv_transfer.nixl_agent import NixlAgent, ucx_environment

MAX_POLLS = 200_000  # ~1 s of polling; a test that needs more has hung


@dataclass
class Pair:
    source: TransferAgent
    source_pool: Pool
    source_layout: KVLayout
    target: TransferAgent
    target_pool: Pool
    target_layout: KVLayout

    def finish(self, handle: int) -> None:
        for _ in range(MAX_POLLS):
            self.target.take_notifications()
            if self.source.poll(handle) is WriteState.DONE:
                return
        raise AssertionError("the write never completed")

    def receive(self, count: int = 1) -> list[tuple[str, bytes]]:
        received: list[tuple[str, bytes]] = []
        for _ in range(MAX_POLLS):
            self.source.take_notifications()
            received += self.target.take_notifications()
            if len(received) >= count:
                return received
        raise AssertionError("the notification never arrived")


@pytest.fixture(scope="module")
def ucx() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ucx_environment(interfaces="lo").items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["fake", "nixl"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pools = make_pool(), make_pool(fill=0)
    layouts = layout_of(pools[0]), layout_of(pools[1])
    names = f"prefill-{uuid.uuid4().hex}", f"decode-{uuid.uuid4().hex}"
    make: Callable[[int], TransferAgent]
    if request.param == "fake":
        fabric = Fabric()
        make = lambda i: FakeAgent(names[i], pools[i], fabric)  # noqa: E731
    else:
        request.getfixturevalue("ucx")
        make = lambda i: NixlAgent(names[i], layouts[i])  # noqa: E731
    source, target = make(0), make(1)
    yield Pair(source, pools[0], layouts[0], target, pools[1], layouts[1])
    source.close()
    target.close()


@pytest.fixture
def met(pair: Pair) -> Pair:
    meet(pair.source, pair.source_layout, pair.target, pair.target_layout)
    return pair


def test_writes_exactly_the_named_blocks(met: Pair) -> None:
    handle = met.source.post_write(met.target.name, [(0, 5), (3, 1)])
    met.finish(handle)
    met.source.release(handle)

    expected = np.zeros_like(met.target_pool)
    expected[5], expected[1] = met.source_pool[0], met.source_pool[3]
    np.testing.assert_array_equal(met.target_pool, expected)


def test_notification_of_a_write_arrives_with_its_bytes_there(met: Pair) -> None:
    handle = met.source.post_write(met.target.name, [(2, 2)], notification=b"written")
    for _ in range(MAX_POLLS):
        met.source.poll(handle)
        if received := met.target.take_notifications():
            break

    assert received == [(met.source.name, b"written")]
    np.testing.assert_array_equal(met.target_pool[2], met.source_pool[2])
    met.finish(handle)
    met.source.release(handle)


def test_notifications_keep_order_and_size(met: Pair) -> None:
    payloads = [b"\x00", b"one", b"x" * 100_000]
    for payload in payloads:
        met.source.send_notification(met.target.name, payload)
    assert met.receive(3) == [(met.source.name, payload) for payload in payloads]
    assert met.target.take_notifications() == []


def test_both_directions(met: Pair) -> None:
    handle = met.target.post_write(met.source.name, [(0, 7)])
    for _ in range(MAX_POLLS):
        met.source.take_notifications()
        if met.target.poll(handle) is WriteState.DONE:
            break
    met.target.release(handle)
    assert not met.source_pool[7].any()


def test_adding_a_known_peer_again_changes_nothing(met: Pair) -> None:
    meet(met.source, met.source_layout, met.target, met.target_layout)
    handle = met.source.post_write(met.target.name, [(0, 0)])
    met.finish(handle)
    met.source.release(handle)


def test_strangers_are_refused(pair: Pair) -> None:
    with pytest.raises(TransferError, match="not met"):
        pair.source.post_write(pair.target.name, [(0, 0)])
    with pytest.raises(TransferError, match="not met"):
        pair.source.send_notification(pair.target.name, b"hello")


def test_a_removed_peer_is_a_stranger_and_may_return(met: Pair) -> None:
    met.source.remove_peer(met.target.name)
    met.source.remove_peer(met.target.name)
    with pytest.raises(TransferError):
        met.source.post_write(met.target.name, [(0, 0)])

    meet(met.source, met.source_layout, met.target, met.target_layout)
    handle = met.source.post_write(met.target.name, [(0, 0)])
    met.finish(handle)
    met.source.release(handle)


@pytest.mark.parametrize("pairs", [[], [(8, 0)], [(0, 8)], [(-1, 0)]])
def test_a_block_outside_a_pool_is_refused(met: Pair, pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(TransferError):
        met.source.post_write(met.target.name, pairs)


def test_wrong_metadata_is_refused(pair: Pair) -> None:
    with pytest.raises(TransferError):
        pair.source.add_peer(pair.target_layout.hello(pair.target.name, b"garbage"))
    with pytest.raises(TransferError):
        pair.source.add_peer(pair.target_layout.hello("someone-else", pair.target.metadata()))


def test_a_finished_write_stays_finished(met: Pair) -> None:
    handle = met.source.post_write(met.target.name, [(0, 0)])
    met.finish(handle)
    assert met.source.poll(handle) is WriteState.DONE
    met.source.release(handle)


def test_many_writes_at_once_do_not_mix(met: Pair) -> None:
    handles = [met.source.post_write(met.target.name, [(block, 7 - block)]) for block in range(8)]
    for handle in reversed(handles):
        met.finish(handle)
        met.source.release(handle)
    np.testing.assert_array_equal(met.target_pool, met.source_pool[::-1])


def test_a_write_may_be_released_before_anybody_asked_for_it(met: Pair) -> None:
    handle = met.source.post_write(met.target.name, [(0, 0), (1, 1)])
    met.source.release(handle)
    later = met.source.post_write(met.target.name, [(2, 2)])
    met.finish(later)
    met.source.release(later)
    np.testing.assert_array_equal(met.target_pool[2], met.source_pool[2])


def test_a_block_may_be_written_again(met: Pair) -> None:
    for source in (0, 1):
        handle = met.source.post_write(met.target.name, [(source, 3)])
        met.finish(handle)
        met.source.release(handle)
    np.testing.assert_array_equal(met.target_pool[3], met.source_pool[1])


def test_a_notification_may_be_answered(met: Pair) -> None:
    met.source.send_notification(met.target.name, b"delivered")
    assert met.receive() == [(met.source.name, b"delivered")]
    met.target.send_notification(met.source.name, b"received")
    for _ in range(MAX_POLLS):
        met.target.take_notifications()
        if received := met.source.take_notifications():
            break
    assert received == [(met.target.name, b"received")]


def test_an_empty_handed_poll_is_no_error(pair: Pair) -> None:
    assert pair.source.take_notifications() == []
    pair.source.remove_peer("never met")


def test_closing_with_a_write_unfinished(met: Pair) -> None:
    met.source.post_write(met.target.name, [(0, 0)])
    met.source.close()
    met.target.take_notifications()


def test_close_twice(pair: Pair) -> None:
    pair.source.close()
    pair.source.close()
