"""One process of ours, as `diptych.launch` runs it: started with its configuration, asked for its record, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180.0  # on a busy machine; most of it goes into imports
STOP_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Process:
    process: asyncio.subprocess.Process
    record: Any
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


async def spawn(module: str, config: Any, record_type: type[Any], logs: Path, before: Sequence[str] = ()) -> Process:
    """`python -m module` with its configuration; returns when it has said that it is ready.

    Args:
        before: put before the command, e.g. to run it on another host; it must keep the pid.

    Raises:
        RuntimeError: it ended instead; the message has its log.
    """
    log = logs / f"{module}-{uuid4().hex[:6]}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *before,
            sys.executable,
            "-m",
            module,
            msgspec.json.encode(config).decode(),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline()
    except BaseException:
        process.kill()
        raise
    if not line:
        await process.wait()
        raise RuntimeError(f"{module} did not start:\n{log.read_text()}")
    return Process(process, msgspec.json.decode(line, type=record_type), log)


async def stop(process: Process) -> int:
    """SIGTERM, which drains, and SIGKILL if that takes too long; the exit status. A stopped process is woken up."""
    if process.process.returncode is not None:
        return process.process.returncode
    process.process.send_signal(signal.SIGCONT)
    process.process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            return await process.process.wait()
    except TimeoutError:
        await process.kill()
        return -signal.SIGKILL
