"""The pushing side of a measurement, and the process it pushes to: prompts' KV over shared memory, in three ways."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar
from uuid import uuid4

import msgspec
import numpy as np

from benchmarks.transfer import receiving
from benchmarks.transfer.loop_probe import LoopProbe
from benchmarks.transfer.pool import layout_of, make_pool
from benchmarks.transfer.raw_nixl import RawNixl
from benchmarks.transfer.receiving import RAW, Answer, Arrived, Command, Expect, Hellos, Meet, Met, transfer_threads
from diptych.messages import Slot, Ticket
from kv_transfer.nixl_agent import ucx_environment
from kv_transfer.transfer import EndReason

SPARE = 2  # pools hold so many prompts: blocks of one are not neighbours, as in a worker that has run for a while
TIMEOUT_S = 60.0

Kind = TypeVar("Kind", bound=Answer)


@dataclass(frozen=True, slots=True)
class Push:
    """One prompt's KV, pushed."""

    written_s: float  # from the first write's post until the last one is done, as the pusher saw it
    delivered_s: float  # from "all blocks are ready" until the receiving event loop has the accepted delivery
    pushing_stall_ms: float  # longest time the event loop did not run, on either side
    receiving_stall_ms: float


class Pair:
    """Made by `open_pair`."""

    def __init__(self, pipe: Connection, num_blocks: int, block_bytes: int) -> None:
        self._pipe = pipe
        self.num_blocks, self.num_bytes = num_blocks, num_blocks * block_bytes
        self._pool = make_pool(SPARE * num_blocks, block_bytes, seed=0)
        rng = random.Random(0)
        self._ours, self._theirs = (rng.sample(range(SPARE * num_blocks), num_blocks) for _ in range(2))
        prefix = f"pushing-{uuid4().hex[:8]}"
        self._threads = transfer_threads(prefix, self._pool, lambda arrival: None)
        self._raw = RawNixl(f"{prefix}-{RAW}", layout_of(self._pool))
        self._copy = np.ones(self.num_bytes, dtype=np.uint8)

    async def open(self) -> None:
        """Meet the receiving side, each kind with its own."""
        self._hellos = msgspec.msgpack.decode(await self._receive(), type=Hellos).by_kind
        for kind, thread in self._threads.items():
            await thread.start()
            await self._tell(Meet(kind, thread.hello))
            await thread.add_peer(self._hellos[kind])
        self._write = self._raw.prepare(self._hellos[RAW], list(zip(self._ours, self._theirs, strict=True)))

    async def close(self) -> None:
        await asyncio.gather(*(thread.stop() for thread in self._threads.values()))

    async def push(self, kind: str) -> Push:
        """Through our transfer threads; all blocks are ready at once, as if prefill took no time."""
        thread, decode_id, transfer_id = self._threads[kind], self._hellos[kind].worker_id, uuid4().hex
        slots = [Slot(block, 1) for block in self._theirs]
        ticket = Ticket(
            transfer_id=transfer_id,
            decode_id=decode_id,
            decode_address="",
            first_block=0,
            slots=slots,
            ttl_ms=int(TIMEOUT_S * 1e3),
        )
        await self._tell(Expect(kind, transfer_id, thread.hello.worker_id, slots))
        async with LoopProbe() as probe:
            pushed = thread.push(ticket)
            began = time.monotonic()
            thread.ready(transfer_id, 0, self._ours, last=True, first_tokens=[1])
            outcome = await pushed
        arrived = await self._answer(Arrived)
        if outcome.end is not EndReason.DELIVERED or arrived.num_bad_blocks:
            raise RuntimeError(f"a push ended as {outcome.end} with {arrived.num_bad_blocks} damaged blocks")
        return Push(outcome.seconds, arrived.at - began, probe.longest_stall_s * 1e3, arrived.longest_stall_ms)

    def raw_write_s(self) -> float:
        """The same blocks, one NIXL write. Blocks the caller."""
        return self._raw.write_s(self._write)

    def memcpy_s(self) -> float:
        """As many bytes that lie in one piece, within this process."""
        source = self._pool[: self.num_blocks].reshape(-1)
        began = time.perf_counter()
        np.copyto(self._copy, source)
        return time.perf_counter() - began

    async def _tell(self, command: Command) -> None:
        self._pipe.send_bytes(msgspec.msgpack.encode(command))
        await self._answer(Met)

    async def _answer(self, kind: type[Kind]) -> Kind:
        answer = msgspec.msgpack.decode(await self._receive(), type=Answer)
        assert isinstance(answer, kind)
        return answer

    async def _receive(self) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.to_thread(self._pipe.recv_bytes)


@asynccontextmanager
async def open_pair(num_blocks: int, block_bytes: int) -> AsyncIterator[Pair]:
    """Two processes that have met; this one must not have imported NIXL before."""
    environment = ucx_environment(interfaces="lo")
    os.environ.update(environment)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, environment, SPARE * num_blocks, block_bytes)
    process = context.Process(target=receiving.main, args=arguments, daemon=True)
    process.start()
    theirs.close()
    pair = Pair(ours, num_blocks, block_bytes)
    try:
        await pair.open()
        yield pair
    finally:
        await pair.close()
        ours.close()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
