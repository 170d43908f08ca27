"""The receiving process of a measurement: a decode worker's transfer half, driven over a pipe.

It holds one pool and, on it, one transfer thread that verifies checksums, one that does not, and one raw NIXL agent.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import msgspec

from benchmarks.transfer.loop_probe import LoopProbe
from benchmarks.transfer.pool import layout_of, make_pool
from benchmarks.transfer.raw_nixl import RawNixl
from diptych.messages import PeerHello, Slot
from kv_transfer.checksum import Pool
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.nixl_agent import NixlAgent
from kv_transfer.outcome import Arrival
from kv_transfer.transfer_thread import TransferThread

CHECKED, BARE, RAW = "checked", "bare", "raw"
PROGRESS_S = 0.001


class Hellos(msgspec.Struct, frozen=True):
    """The receiving process, once: who can be reached here, by CHECKED, BARE and RAW."""

    by_kind: dict[str, PeerHello]


class Meet(msgspec.Struct, frozen=True, tag=True):
    kind: str
    hello: PeerHello


class Expect(msgspec.Struct, frozen=True, tag=True):
    kind: str
    transfer_id: str
    prefill_id: str
    slots: list[Slot]


class Met(msgspec.Struct, frozen=True, tag=True):
    pass


class Arrived(msgspec.Struct, frozen=True, tag=True):
    at: float  # monotonic seconds, a clock that all processes of a machine share
    num_bad_blocks: int
    longest_stall_ms: float  # of this process's event loop, since it was told what to expect


Command = Meet | Expect
Answer = Met | Arrived


@dataclass(slots=True)
class _Expected:
    probe: LoopProbe
    arrived: asyncio.Future[Arrival]


def main(pipe: Connection, environment: dict[str, str], num_blocks: int, block_bytes: int) -> None:
    """Runs until the pipe is closed. `environment` has to be there before NIXL is imported."""
    os.environ.update(environment)
    asyncio.run(_Receiving(pipe, num_blocks, block_bytes).run())


def transfer_threads(prefix: str, pool: Pool, on_delivery: Callable[[Arrival], None]) -> dict[str, TransferThread]:
    """One that checksums, CHECKED, and one that does not, BARE, on the same memory."""
    layout = layout_of(pool)

    def make(kind: str, checked_pool: Pool | None) -> TransferThread:
        worker_id = f"{prefix}-{kind}"
        return TransferThread(worker_id, layout, checked_pool, lambda: NixlAgent(worker_id, layout), on_delivery)

    return {CHECKED: make(CHECKED, pool), BARE: make(BARE, None)}


class _Receiving:
    def __init__(self, pipe: Connection, num_blocks: int, block_bytes: int) -> None:
        self._pipe = pipe
        pool = make_pool(num_blocks, block_bytes, seed=1)
        prefix = f"receiving-{os.getpid()}"
        self._threads = transfer_threads(prefix, pool, self._on_delivery)
        self._raw = RawNixl(f"{prefix}-{RAW}", layout_of(pool))
        self._expected: dict[str, _Expected] = {}

    async def run(self) -> None:
        hellos = {kind: await thread.start() for kind, thread in self._threads.items()}
        self._pipe.send_bytes(msgspec.msgpack.encode(Hellos(hellos | {RAW: self._raw.hello()})))
        progress = asyncio.create_task(self._progress())
        try:
            while True:
                await self._obey(msgspec.msgpack.decode(await asyncio.to_thread(self._pipe.recv_bytes), type=Command))
        except EOFError:
            progress.cancel()
            await asyncio.gather(*(thread.stop() for thread in self._threads.values()))

    async def _obey(self, command: Command) -> None:
        if isinstance(command, Meet):
            await self._threads[command.kind].add_peer(command.hello)
            self._answer(Met())
            return
        thread = self._threads[command.kind]
        async with LoopProbe() as probe:
            expected = _Expected(probe, asyncio.get_running_loop().create_future())
            self._expected[command.transfer_id] = expected
            worker_id = thread.hello.worker_id
            thread.expect(
                IncomingTransfer(command.transfer_id, worker_id, command.prefill_id, command.slots, num_choices=1)
            )
            self._answer(Met())
            arrival = await expected.arrived
            at = time.monotonic()
        thread.forget(command.transfer_id)
        self._answer(Arrived(at, len(arrival.bad_blocks), probe.longest_stall_s * 1e3))

    def _on_delivery(self, arrival: Arrival) -> None:
        self._expected.pop(arrival.delivery.transfer_id).arrived.set_result(arrival)

    def _answer(self, answer: Answer) -> None:
        self._pipe.send_bytes(msgspec.msgpack.encode(answer))

    async def _progress(self) -> None:
        """Raw NIXL connects only while both sides ask it to."""
        while True:
            self._raw.progress()
            await asyncio.sleep(PROGRESS_S)
