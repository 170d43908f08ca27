"""The prefill worker as a process: the shared shell with this role's service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from diptych.config import WorkerConfig
from diptych.messages import WorkerRecord
from diptych.worker.process import run_worker
from prefill_worker.service import PrefillService


async def run(config: WorkerConfig, started: Callable[[WorkerRecord], None], stop: asyncio.Event) -> None:
    """See `run_worker`."""
    await run_worker(config, PrefillService, started, stop)
