"""A decode worker's transfer half in a process of its own, driven over a pipe."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import msgspec
from transfer_peers import layout_of, make_pool

from diptych.messages import PeerHello, Slot
from kv_transfer.checksum import checksums
from kv_transfer.nixl_agent import NixlAgent
from kv_transfer.outcome import Arrival
from kv_transfer.transfer import IncomingTransfer
from kv_transfer.transfer_thread import TransferThread


class Meet(msgspec.Struct, tag=True):
    hello: PeerHello


class Expect(msgspec.Struct, tag=True):
    transfer_id: str
    prefill_id: str
    slots: list[Slot]


class Done(msgspec.Struct, tag=True):
    """The last message has been acted on."""


class Arrived(msgspec.Struct, tag=True):
    transfer_id: str
    first_tokens: list[int]
    bad_blocks: list[int]
    checksums: list[int]  # of the pool's blocks in slot order, computed when it arrived
    num_bytes: int
    transfer_ms: float
    exposed_ms: float
    refused: dict[str, int]


_decode = msgspec.msgpack.Decoder(Meet | Expect | Done | Arrived).decode


class DecodeProcess:
    """The test's end of the pipe."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process = process
        self._pipe = pipe
        self.hello = msgspec.msgpack.decode(pipe.recv_bytes(), type=PeerHello)

    def send(self, message: Meet | Expect) -> None:
        """Returns when it has been acted on."""
        self._pipe.send_bytes(msgspec.msgpack.encode(message))
        assert isinstance(_decode(self._pipe.recv_bytes()), Done)

    def receive(self, timeout_s: float = 10.0) -> Arrived:
        if not self._pipe.poll(timeout_s):
            raise AssertionError("nothing arrived")
        message = _decode(self._pipe.recv_bytes())
        assert isinstance(message, Arrived)
        return message


@contextmanager
def decode_process(
    worker_id: str, environment: dict[str, str], num_blocks: int = 8, block_bytes: int = 4096
) -> Iterator[DecodeProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, worker_id, environment, num_blocks, block_bytes), daemon=True)
    process.start()
    theirs.close()
    try:
        yield DecodeProcess(process, ours)
    finally:
        process.kill()
        process.join()


def _main(pipe: Connection, worker_id: str, environment: dict[str, str], num_blocks: int, block_bytes: int) -> None:
    os.environ.update(environment)
    asyncio.run(_serve(pipe, worker_id, num_blocks, block_bytes))


async def _serve(pipe: Connection, worker_id: str, num_blocks: int, block_bytes: int) -> None:
    pool = make_pool(num_blocks, block_bytes, fill=0)
    layout = layout_of(pool)

    def on_delivery(arrival: Arrival) -> None:
        delivery = arrival.delivery
        thread.forget(delivery.transfer_id)
        arrived = Arrived(
            transfer_id=delivery.transfer_id,
            first_tokens=delivery.first_tokens,
            bad_blocks=list(arrival.bad_blocks),
            checksums=checksums(pool, [slot.block for slot in delivery.slots]),
            num_bytes=arrival.num_bytes,
            transfer_ms=arrival.transfer_ms,
            exposed_ms=arrival.exposed_ms,
            refused={str(reason): count for reason, count in thread.counters.refused.items()},
        )
        pipe.send_bytes(msgspec.msgpack.encode(arrived))

    thread = TransferThread(worker_id, layout, pool, lambda: NixlAgent(worker_id, layout), on_delivery)
    pipe.send_bytes(msgspec.msgpack.encode(await thread.start()))
    while True:
        try:
            message = _decode(await asyncio.to_thread(pipe.recv_bytes))
        except EOFError:
            return await thread.stop()
        if isinstance(message, Meet):
            await thread.add_peer(message.hello)
        elif isinstance(message, Expect):
            thread.expect(
                IncomingTransfer(message.transfer_id, worker_id, message.prefill_id, message.slots, num_choices=1)
            )
        pipe.send_bytes(msgspec.msgpack.encode(Done()))
