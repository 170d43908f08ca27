"""Pushes between two processes over real NIXL."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from transfer_peers import layout_of, make_pool
from transfer_process import DecodeProcess, Expect, Meet, decode_process

from diptych.errors import Incompatible
from diptych.messages import PeerHello, Slot, Ticket
from kv_transfer.checksum import checksums
from kv_transfer.nixl_agent import NixlAgent, ucx_environment
from kv_transfer.transfer import EndReason
from kv_transfer.transfer_thread import TransferThread

NUM_BLOCKS, BLOCK_BYTES = 40, 65_536
POOL = make_pool(NUM_BLOCKS, BLOCK_BYTES)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    environment = ucx_environment(interfaces="lo")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture
def decode(environment: dict[str, str]) -> Iterator[DecodeProcess]:
    with decode_process(f"decode-{uuid.uuid4().hex}", environment, NUM_BLOCKS, BLOCK_BYTES) as process:
        yield process


@pytest.fixture
async def prefill(environment: dict[str, str]) -> AsyncIterator[TransferThread]:
    worker_id = f"prefill-{uuid.uuid4().hex}"
    layout = layout_of(POOL)
    thread = TransferThread(worker_id, layout, POOL, lambda: NixlAgent(worker_id, layout), lambda arrival: None)
    await thread.start()
    yield thread
    await thread.stop()


def ticket_for(decode: DecodeProcess, slots: list[Slot], transfer_id: str = "t1", first_block: int = 0) -> Ticket:
    return Ticket(
        transfer_id=transfer_id,
        decode_id=decode.hello.worker_id,
        decode_address="",
        first_block=first_block,
        slots=slots,
        ttl_ms=10_000,
    )


async def meet(prefill: TransferThread, decode: DecodeProcess) -> None:
    decode.send(Meet(prefill.hello))  # or its receipts find no way
    await prefill.add_peer(decode.hello)


async def test_a_push_in_chunks_arrives_verified(prefill: TransferThread, decode: DecodeProcess) -> None:
    await meet(prefill, decode)
    slots = [Slot(block, 3) for block in reversed(range(NUM_BLOCKS))]
    blocks = list(range(NUM_BLOCKS))
    decode.send(Expect("t1", prefill.hello.worker_id, slots))

    pushed = prefill.push(ticket_for(decode, slots, first_block=2))
    prefill.ready("t1", 2, blocks[:7], last=False)
    prefill.ready("t1", 9, blocks[7:], last=True, first_tokens=[42])
    outcome = await asyncio.wait_for(pushed, 10)
    arrived = await asyncio.to_thread(decode.receive)

    assert outcome.end is EndReason.DELIVERED
    assert outcome.num_bytes == arrived.num_bytes == POOL.nbytes
    assert arrived.bad_blocks == []
    assert arrived.checksums == checksums(POOL, blocks)
    assert arrived.first_tokens == [42]
    assert 0 < arrived.transfer_ms < arrived.exposed_ms  # the whole prompt was ready before the first write
    assert prefill.counters.transfers_total == 1
    assert prefill.counters.transfer_bytes_total == POOL.nbytes
    assert prefill.counters.transfer_bytes_per_s > 0


async def test_a_push_of_nothing_still_hands_over(prefill: TransferThread, decode: DecodeProcess) -> None:
    await meet(prefill, decode)
    decode.send(Expect("t1", prefill.hello.worker_id, []))
    pushed = prefill.push(ticket_for(decode, [], first_block=4))
    prefill.ready("t1", 4, [], last=True, first_tokens=[7])
    assert (await asyncio.wait_for(pushed, 10)).end is EndReason.DELIVERED
    assert (await asyncio.to_thread(decode.receive)).first_tokens == [7]


async def test_a_stale_slot_is_refused_and_the_next_transfer_works(
    prefill: TransferThread, decode: DecodeProcess
) -> None:
    await meet(prefill, decode)
    decode.send(Expect("stale", prefill.hello.worker_id, [Slot(0, 2)]))
    decode.send(Expect("fresh", prefill.hello.worker_id, [Slot(1, 2)]))
    ends = {"stale": EndReason.REFUSED, "fresh": EndReason.DELIVERED}
    for transfer_id, slot in (("stale", Slot(0, 1)), ("fresh", Slot(1, 2))):
        pushed = prefill.push(ticket_for(decode, [slot], transfer_id))
        prefill.ready(transfer_id, 0, [5], last=True, first_tokens=[1])
        assert (await asyncio.wait_for(pushed, 10)).end is ends[transfer_id]

    arrived = await asyncio.to_thread(decode.receive)
    assert arrived.transfer_id == "fresh"
    assert arrived.refused == {"wrong_slots": 1}


async def test_a_killed_decode_ends_its_transfers_quietly(prefill: TransferThread, decode: DecodeProcess) -> None:
    await meet(prefill, decode)
    slots = [Slot(block, 0) for block in range(NUM_BLOCKS)]
    pushed = prefill.push(ticket_for(decode, slots))
    prefill.ready("t1", 0, [0], last=False)
    assert decode.process.pid is not None
    os.kill(decode.process.pid, signal.SIGKILL)
    decode.process.join()

    for index in range(1, NUM_BLOCKS - 1):  # blocks keep becoming ready until the loss is noticed
        prefill.ready("t1", index, [index], last=False)
    outcome = await asyncio.wait_for(pushed, 10)
    assert outcome.end is EndReason.PEER_LOST
    await asyncio.wait_for(prefill.abort("t1"), 1)


async def test_other_models_are_refused_by_name(prefill: TransferThread, decode: DecodeProcess) -> None:
    hello = decode.hello
    other = PeerHello(
        worker_id=hello.worker_id,
        fingerprint=hello.fingerprint.replace("model=tiny", "model=huge"),
        agent_metadata=hello.agent_metadata,
        pool_address=hello.pool_address,
        block_bytes=hello.block_bytes,
        num_blocks=hello.num_blocks,
    )
    with pytest.raises(Incompatible, match=r"prefill-.*decode-.*model is tiny.*huge"):
        await prefill.add_peer(other)
    assert not prefill.knows(hello.worker_id)
