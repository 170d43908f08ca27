"""Which clusters of this user run on this machine, and where their admin doors are: one small file each.

A file is readable by its owner only, because it holds the key of the door. It goes with its cluster; one that a killed
command left behind is recognised by its process (pid and start time) and removed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """One `diptych up`."""

    name: str
    admin_url: str
    admin_key: str
    admin_cert: str = ""  # file of the door's certificate; "": it speaks plain HTTP
    pid: int
    created_at_s: float  # with the pid: this process and no later one

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created_at_s) < 0.1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def state_home(environment: Mapping[str, str]) -> Path:
    """Where the user's state is kept (XDG base directory specification)."""
    given = environment.get("XDG_STATE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path(environment.get("HOME") or Path.home()) / ".local/state"
    return base / "diptych"


class RunningFiles:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folder = state_home(environment) / "running"

    def write(self, running: Running) -> Path:
        """Make it known. Remove the file when it ends."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{running.name}-{running.pid}.json"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(msgspec.json.encode(running))
        return path

    def alive(self) -> list[Running]:
        """Those that run; files of others are removed."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                running = msgspec.json.decode(path.read_bytes(), type=Running)
            except (OSError, ValueError):
                continue  # being written or removed right now
            if running.alive:
                found.append(running)
            else:
                path.unlink(missing_ok=True)
        return found
