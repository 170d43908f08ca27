"""What one run keeps on disk: a short-lived folder for sockets and sessions, and logs that outlive it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from deploy.running import RunningFiles, state_home

PREFIX = "diptych-"
KEPT_RUNS = 5  # logs of older runs are removed


class RunFolder:
    """A private folder for sockets and sessions; making one first removes those that killed runs of this user left.

    A lock that the kernel drops when its last holder dies tells a folder in use from one left behind.
    """

    def __init__(self, base: Path | None = None) -> None:
        base = base or _base()
        remove_abandoned(base)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if (self.path / "lock").exists():
                return
            os.close(self._lock)  # another run found it before it was locked, and took it for abandoned

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def remove_abandoned(base: Path) -> None:
    for lock_path in base.glob(f"{PREFIX}*/lock"):
        try:
            if lock_path.stat().st_uid != os.getuid():
                continue
            lock = os.open(lock_path, os.O_RDWR)
        except FileNotFoundError:
            continue  # its run, or another that cleans up, has just removed it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_path.parent, ignore_errors=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(lock)


def log_folder(environment: Mapping[str, str]) -> Path:
    """A new folder for this run's logs, under the user's state folder. Logs of clusters that run are never removed."""
    logs = state_home(environment) / "logs"
    folder = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    in_use = {str(running.pid) for running in RunningFiles(environment).alive()}
    for old in sorted(path for path in logs.iterdir() if path.is_dir())[:-KEPT_RUNS]:
        if old.name.rpartition("-")[2] not in in_use:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _base() -> Path:
    """/tmp wherever possible: a socket's path has 107 bytes, and TMPDIR may already use most of them."""
    return Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
