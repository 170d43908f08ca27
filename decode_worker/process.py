"""The decode worker as a process: the shared shell with this role's service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from decode_worker.service import DecodeService
from diptych.config import WorkerConfig
from diptych.messages import WorkerRecord
from diptych.worker.process import run_worker


async def run(config: WorkerConfig, started: Callable[[WorkerRecord], None], stop: asyncio.Event) -> None:
    """See `run_worker`."""
    await run_worker(config, DecodeService, started, stop)
