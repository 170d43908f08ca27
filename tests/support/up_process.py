"""`diptych up` as a process of its own, with a home of its own, and everything it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from deploy.api import Admin, find

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 300.0
READY = "Ctrl-C stops everything"
GONE_TIMEOUT_S = 20.0


class UpProcess:
    def __init__(self, home: Path, *arguments: str) -> None:
        self.output = home / "output"
        self.environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": "", "XDG_STATE_HOME": ""}
        with self.output.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "deploy.cli", "up", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._family: dict[int, psutil.Process] = {}
        self._folders: set[str] = set()

    async def wait_ready(self) -> None:
        """
        Raises:
            RuntimeError: it ended, or is not ready in time; the message has its output.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while READY not in self.output.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"diptych up is not ready:\n{self.output.read_text()}")
            await asyncio.sleep(0.1)
        self.look()

    async def __aenter__(self) -> UpProcess:
        return self

    async def __aexit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """The block ends it, and leaves nothing; where the block fails it is told to stop."""
        if failed:
            self.give_up()
        exit_code = await asyncio.to_thread(self.end)
        if not failed:
            assert exit_code == 0, self.output.read_text()[-2_000:]
            assert self.orphans() == []

    def admin(self) -> Admin:
        return find(environment=self.environment)

    def look(self) -> None:
        """Remember every process there is and the folder it works in, to ask for them later."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._folders |= set(re.findall(r"/tmp/diptych-[^/ ]+", " ".join(process.cmdline())))
                    self._family[process.pid] = process

    def give_up(self) -> None:
        """A test has failed: tell it to stop. Not where it stops already, or that is what its exit code says."""
        self.look()
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.terminate()

    def end(self) -> int:
        """Wait for its end, kill it if that takes too long; the exit code."""
        try:
            return int(self.process.wait(GONE_TIMEOUT_S))
        except psutil.TimeoutExpired:
            self.process.kill()
            return int(self.process.wait())

    def orphans(self) -> list[str]:
        """Processes and folders that outlive it."""
        _, alive = psutil.wait_procs(list(self._family.values()), timeout=GONE_TIMEOUT_S)
        processes = [str(process) for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        return [*processes, *filter(os.path.exists, self._folders)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
