"""Stand-ins for a process of the cluster, with the signature of the real ones and none of their weight.

Which one runs is the entry point's name; what they need to know comes in the configuration they are given.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from diptych import rpc
from diptych.config import RouterConfig, WorkerConfig
from diptych.errors import BadRequest
from diptych.membership import MembershipWatch, Registration, connect, tombstone
from diptych.messages import Frame, Role, RouterRecord, Subscribe, WorkerRecord, WorkerState, WorkerStats


async def worker(config: WorkerConfig, started: Callable[[WorkerRecord], None], stop: asyncio.Event) -> None:
    """Serves nothing until it is told to stop; sends frames with the stats it finds in `stats.json`, if it is there."""
    print("stand-in worker", os.getpid(), "OMP", os.environ["OMP_NUM_THREADS"], flush=True)
    redis, server = connect(config.redis_url), rpc.make_server()
    address = f"{config.host}:{server.add_insecure_port(f'{config.host}:0')}"
    rpc.add_to_server(FramesOnly(Path(config.model)), server)
    await server.start()
    membership = Registration(redis, config.cluster, record_of(config, address), config.lease_ms, stop.set)
    await membership.start()
    started(membership.record)
    await stop.wait()
    await membership.update(WorkerState.DRAINING)
    await tombstone(redis, config.cluster, membership.record.worker_id)
    await membership.stop()
    await server.stop(0)
    await redis.aclose()


class FramesOnly:
    """A worker's service that only tells how far it is."""

    def __init__(self, folder: Path) -> None:
        self._stats = folder / "stats.json"

    async def frames(self, _request: Subscribe) -> AsyncIterator[Frame]:
        for sequence in itertools.count():
            told = self._stats.read_bytes() if self._stats.exists() else b"{}"
            yield Frame("stand-in", sequence, [], msgspec.json.decode(told, type=WorkerStats))
            await asyncio.sleep(0.1)

    async def _nothing(self, request: object) -> NoReturn:
        raise BadRequest("a stand-in serves nothing")

    reserve = start = abort = revoke = meet = _nothing


async def retiring_once(config: WorkerConfig, started: Callable[[WorkerRecord], None], stop: asyncio.Event) -> None:
    """Asks to be replaced, the first time: it ends well by itself."""
    marker = Path(config.model) / "retired"
    if not marker.exists():
        marker.touch()
        stop.set()
    await worker(config, started, stop)


async def crashing(config: WorkerConfig, started: Callable[[Any], None], stop: asyncio.Event) -> None:
    """Raises before it is ready."""
    raise ValueError("the model folder is empty")


async def crashing_once(config: WorkerConfig, started: Callable[[Any], None], stop: asyncio.Event) -> None:
    """Raises after it was ready, the first time; the marker lies in what is given as the model folder."""
    started(record_of(config))
    marker = Path(config.model) / "crashed"
    if not marker.exists():
        marker.touch()
        raise RuntimeError("the engine crashed")
    await stop.wait()


async def deaf(config: WorkerConfig, started: Callable[[Any], None], stop: asyncio.Event) -> None:
    """Does not listen when it is told to stop."""
    started(record_of(config))
    await asyncio.Event().wait()


async def router(config: RouterConfig, started: Callable[[RouterRecord], None], stop: asyncio.Event) -> None:
    """Its door says that it knows every worker there is in membership, as the real one does."""
    redis = connect(config.redis_url)
    watch = MembershipWatch(redis, config.cluster)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await watch.poll()
        ready = [record.role for record in watch.workers.values() if record.state is WorkerState.READY]
        body = msgspec.json.encode({"details": {f"{role}_workers": ready.count(role) for role in Role}})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    door = await asyncio.start_server(answer, config.host, 0)
    address = f"{config.host}:{door.sockets[0].getsockname()[1]}"
    started(RouterRecord(router_id=f"router-{os.getpid()}", http_address=address, grpc_address="127.0.0.1:2"))
    async with door:
        await stop.wait()
    await redis.aclose()


def record_of(config: WorkerConfig, address: str = "127.0.0.1:1") -> WorkerRecord:
    return WorkerRecord(
        worker_id=f"{config.role}-{socket.gethostname()}-{os.getpid()}",
        role=config.role,
        address=address,
        state=WorkerState.READY,
        model=config.model,
        fingerprint="",
        block_size=config.block_size,
        num_blocks=1,
        block_bytes=1,
        max_context=1,
        started_at=0.0,
    )
