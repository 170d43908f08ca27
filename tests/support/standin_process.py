"""Stand-ins for a process of the cluster, with the signature of the real ones and none of their weight.

Which one runs is the entry point's name; what they need to know comes in the configuration they are given.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diptych.config import RouterConfig, WorkerConfig
from diptych.messages import RouterRecord, WorkerRecord, WorkerState


async def worker(config: WorkerConfig, started: Callable[[WorkerRecord], None], stop: asyncio.Event) -> None:
    """Serves nothing until it is told to stop."""
    print("stand-in worker", os.getpid(), "OMP", os.environ["OMP_NUM_THREADS"], flush=True)
    started(record_of(config))
    await stop.wait()


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
    started(
        RouterRecord(router_id=f"router-{os.getpid()}", http_address=f"{config.host}:1", grpc_address="127.0.0.1:2")
    )
    await stop.wait()


def record_of(config: WorkerConfig) -> WorkerRecord:
    return WorkerRecord(
        worker_id=f"{config.role}-{socket.gethostname()}-{os.getpid()}",
        role=config.role,
        address=f"{config.host}:1",
        state=WorkerState.READY,
        model=config.model,
        fingerprint="",
        block_size=config.block_size,
        num_blocks=1,
        block_bytes=1,
        max_context=1,
        started_at=0.0,
    )
