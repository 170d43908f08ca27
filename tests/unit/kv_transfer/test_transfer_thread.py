"""The thread and the loop, with fake agents: two workers in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from transfer_peers import FINGERPRINT, layout_of, make_pool

from diptych.errors import Incompatible, InternalError
from diptych.messages import Slot, Ticket
from kv_transfer.agent import TransferAgent, TransferError
from kv_transfer.checksum import Pool
from kv_transfer.fake_agent import Fabric, FakeAgent, Faults
from kv_transfer.outcome import Arrival
from kv_transfer.transfer import EndReason, IncomingTransfer
from kv_transfer.transfer_thread import TransferThread

SLOTS = [Slot(3, 0), Slot(1, 0)]


@dataclass
class Workers:
    prefill: TransferThread
    decode: TransferThread
    faults: Faults  # of prefill's agent
    arrivals: asyncio.Queue[Arrival]


def make_thread(
    name: str, pool: Pool, make_agent: Callable[[], TransferAgent], arrivals: asyncio.Queue[Arrival] | None = None
) -> TransferThread:
    on_delivery = arrivals.put_nowait if arrivals else lambda arrival: None
    return TransferThread(name, layout_of(pool), pool, make_agent, on_delivery)


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    fabric, faults = Fabric(), Faults()
    source, target = make_pool(), make_pool(fill=0)
    arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
    prefill = make_thread("prefill", source, lambda: FakeAgent("prefill", source, fabric, faults))
    decode = make_thread("decode", target, lambda: FakeAgent("decode", target, fabric), arrivals)
    await asyncio.gather(prefill.start(), decode.start())
    await prefill.add_peer(decode.hello)
    await decode.add_peer(prefill.hello)  # or its receipts find no way
    yield Workers(prefill, decode, faults, arrivals)
    await asyncio.gather(prefill.stop(), decode.stop())


def ticket(transfer_id: str = "t") -> Ticket:
    return Ticket(
        transfer_id=transfer_id, decode_id="decode", decode_address="", first_block=0, slots=SLOTS, ttl_ms=5_000
    )


def expect(workers: Workers, transfer_id: str = "t") -> None:
    workers.decode.expect(IncomingTransfer(transfer_id, "decode", "prefill", SLOTS))


async def test_a_push_is_delivered_on_the_loop(workers: Workers) -> None:
    expect(workers)
    pushed = workers.prefill.push(ticket())
    workers.prefill.ready("t", 0, [5], last=False)
    workers.prefill.ready("t", 1, [6], last=True, first_tokens=[9])
    async with asyncio.timeout(5):
        assert (await pushed).end is EndReason.DELIVERED
        arrival = await workers.arrivals.get()
    assert arrival.bad_blocks == ()
    assert arrival.delivery.first_tokens == [9]
    assert workers.prefill.counters.transfers_total == workers.decode.counters.transfers_total == 1


async def test_after_forget_nothing_is_delivered(workers: Workers) -> None:
    for transfer_id in ("t", "u"):
        expect(workers, transfer_id)
    workers.decode.forget("t")
    for transfer_id in ("t", "u"):
        pushed = workers.prefill.push(ticket(transfer_id))
        workers.prefill.ready(transfer_id, 0, [5, 6], last=True)
        await asyncio.wait_for(pushed, 5)
    async with asyncio.timeout(5):
        assert (await workers.arrivals.get()).delivery.transfer_id == "u"
    assert workers.arrivals.empty()


async def test_abort_waits_until_quiet(workers: Workers) -> None:
    workers.faults.never_complete = True
    pushed = workers.prefill.push(ticket())
    workers.prefill.ready("t", 0, [5], last=False)
    await workers.prefill._call(lambda pump: pump.step())  # posted
    abort = asyncio.create_task(workers.prefill.abort("t"))
    done, _ = await asyncio.wait({abort}, timeout=0.05)
    assert not done
    workers.faults.never_complete = False
    async with asyncio.timeout(5):
        await abort
        assert (await pushed).end is EndReason.ABORTED
        await workers.prefill.abort("t")
        await workers.prefill.abort("never heard of")


async def test_losing_a_peer_makes_its_transfers_quiet(workers: Workers) -> None:
    workers.faults.never_complete = True
    pushed = workers.prefill.push(ticket())
    workers.prefill.ready("t", 0, [5], last=False)
    await workers.prefill.lose_peer("decode")
    async with asyncio.timeout(5):
        assert (await pushed).end is EndReason.PEER_LOST
    assert not workers.prefill.knows("decode")


async def test_meeting_may_fail(workers: Workers) -> None:
    stranger = layout_of(make_pool()).hello("stranger", b"garbage")
    with pytest.raises(TransferError):
        await workers.prefill.add_peer(stranger)
    assert not workers.prefill.knows("stranger")
    other = layout_of(make_pool(), FINGERPRINT + "x").hello("other", b"")
    with pytest.raises(Incompatible):
        await workers.prefill.add_peer(other)


async def test_an_agent_that_cannot_start_says_so() -> None:
    def fail() -> TransferAgent:
        raise TransferError("no UCX here")

    thread = make_thread("w", make_pool(), fail)
    with pytest.raises(TransferError, match="no UCX here"):
        await thread.start()
    with pytest.raises(InternalError):
        _ = thread.hello
    await thread.stop()


async def test_a_crash_fails_everything_and_is_told(workers: Workers) -> None:
    pushed = workers.prefill.push(ticket())
    workers.prefill.ready("t", 0, [999], last=False)  # the fake refuses it, as NIXL does
    assert (await asyncio.wait_for(pushed, 5)).end is EndReason.WRITE_FAILED
    assert not workers.prefill.ended.is_set()

    waiting = workers.prefill.push(ticket("u"))
    workers.prefill._put(lambda pump: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(TransferError, match="a bug"):
        await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(workers.prefill.ended.wait(), 5)
    assert isinstance(workers.prefill.error, RuntimeError)
    with pytest.raises(TransferError):
        workers.prefill.push(ticket("v"))


async def test_stopping_fails_what_is_pending(workers: Workers) -> None:
    pushed = workers.prefill.push(ticket())
    await workers.prefill.stop()
    with pytest.raises(TransferError, match="ended"):
        await asyncio.wait_for(pushed, 5)
    assert workers.prefill.error is None
    await workers.prefill.stop()
