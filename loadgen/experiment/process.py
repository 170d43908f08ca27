"""`diptych up` as a process of this one: started from a description of the cluster, ended with it.

It has a session of its own, so that Ctrl-C in a terminal reaches this process alone, which decides; and the kernel ends
it if this process dies. Everything it says goes to a file.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from diptych.trust import pinned
from loadgen.experiment.shape import SystemUnavailable

READY = "Ctrl-C stops everything"  # said when the cluster has answered its first question
POLL_S = 0.1
STOP_TIMEOUT_S = 90.0  # longer than a drain
TAIL_CHARS = 2_000
SAME_START_S = 0.1  # start times of one process, as two others read them
QUESTION = ("--prompt", "Hello", "--max-tokens", "1")  # the command always asks one


class Door(msgspec.Struct, frozen=True):
    """What `diptych up` writes down for this user's other commands (docs/operations.md)."""

    name: str  # of the cluster
    admin_url: str
    admin_key: str
    pid: int
    created_at_s: float  # with the pid: this process and no later one
    admin_cert: str = ""  # file of the door's certificate; empty: it speaks plain HTTP

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_at_s) < SAME_START_S
            return same and process.status() != psutil.STATUS_ZOMBIE  # which has ended, and nobody has asked how
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # another user's process is not this user's cluster
            return False

    @property
    def trust(self) -> ssl.SSLContext | None:
        """
        Raises:
            OSError: the certificate cannot be read.
        """
        return pinned(self.admin_cert) if self.admin_cert else None


class UpProcess:
    def __init__(self, process: asyncio.subprocess.Process, output: Path, running: Path, name: str) -> None:
        self._process = process
        self._output = output
        self._running = running
        self._name = name

    @classmethod
    async def start(
        cls, description: Path, name: str, output: Path, environment: Mapping[str, str], ray_address: str = ""
    ) -> UpProcess:
        """
        Args:
            description: TOML, of the cluster called `name`.
            output: file for what the command says.
            ray_address: of an existing Ray cluster; empty: a private one.
        """
        ray = ("--ray-address", ray_address) if ray_address else ()
        up = (sys.executable, "-m", "deploy.cli", "up", "--config", str(description), *QUESTION, *ray)
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "deploy.die_with_parent", str(os.getpid()), *up),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=dict(environment),
                start_new_session=True,
            )
        return cls(process, output, running_folder(environment), name)

    async def wait_ready(self, timeout_s: float) -> Door:
        """
        Raises:
            SystemUnavailable: it ended, or is not ready in time; the message has the end of its output.
        """
        deadline = time.monotonic() + timeout_s
        while READY not in self._said():
            if self._process.returncode is not None:
                raise SystemUnavailable(f"diptych up ended with {self._process.returncode}:\n{self._end_of_output()}")
            if time.monotonic() > deadline:
                raise SystemUnavailable(f"diptych up is not ready after {timeout_s:g} s:\n{self._end_of_output()}")
            await asyncio.sleep(POLL_S)
        return find_door(self._running, self._name)

    async def stop(self) -> None:
        """End it in order: it drains, and removes everything it made."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _said(self) -> str:
        return self._output.read_text(errors="replace")

    def _end_of_output(self) -> str:
        return f"{self._said()[-TAIL_CHARS:]}\n(all of it: {self._output})"


def running_folder(environment: Mapping[str, str]) -> Path:
    """Where `diptych up` notes the admin doors of this user's clusters."""
    given = environment.get("XDG_STATE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path(environment.get("HOME") or Path.home()) / ".local/state"
    return base / "diptych" / "running"


def find_door(folder: Path, name: str = "") -> Door:
    """The admin door of this user's cluster called `name`; of the only one if that is empty.

    Raises:
        SystemUnavailable: there is none, or more than one.
    """
    doors = filter(None, map(_read, sorted(folder.glob("*.json"))))
    alive = [door for door in doors if name in ("", door.name) and door.alive]
    if len(alive) != 1:
        looked_for = f"cluster {name!r}" if name else "one cluster of this user"
        there = ", ".join(f"{door.name} (process {door.pid})" for door in alive) or "none"
        raise SystemUnavailable(
            f"{looked_for} is looked for in {folder}; there is {there}. Start one with diptych "
            "up, or name its admin door with --admin URL and its key in DIPTYCH_ADMIN_KEY"
        )
    return alive[0]


def _read(file: Path) -> Door | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Door)
    except (OSError, ValueError):
        return None  # being written or removed right now
