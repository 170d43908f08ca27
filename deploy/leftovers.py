"""What the processes of this machine hold outside themselves, and what of it is still there when they are gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SHARED_MEMORY = "/dev/shm/"


@dataclass
class Footprint:
    """Processes, shared-memory files and named sockets of a process tree. Only ever grows.

    Args:
        ignored: a folder that its owner removes as a whole.
    """

    ignored: Path

    processes: dict[int, psutil.Process] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)

    def add_descendants(self, root: psutil.Process) -> None:
        self.add(root.children(recursive=True))

    def add(self, processes: Iterable[psutil.Process]) -> None:
        for process in processes:
            self.processes[process.pid] = process
            self.files |= {path for path in _files_of(process) if not path.is_relative_to(self.ignored)}

    def remaining(self) -> list[str]:
        """What is still there, in words."""
        alive = [f"process {pid} ({_name(process)})" for pid, process in self.processes.items() if _is_alive(process)]
        return alive + [f"file {path}" for path in sorted(self.files) if path.exists()]

    def remove(self) -> None:
        """Kill and delete what is left."""
        for process in self.processes.values():
            if _is_alive(process):
                process.kill()
        for path in self.files:
            path.unlink(missing_ok=True)


def _files_of(process: psutil.Process) -> set[Path]:
    """Its files in shared memory that still have a name, and the sockets it listens at."""
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        mapped = {line[line.index(SHARED_MEMORY) :] for line in maps if SHARED_MEMORY in line}
        opened = {file.path for file in process.open_files() if file.path.startswith(SHARED_MEMORY)}
        sockets = {str(c.laddr) for c in process.net_connections("unix") if str(c.laddr).startswith("/")}
    except (OSError, psutil.Error):  # it ended meanwhile
        return set()
    return {Path(path) for path in mapped | opened | sockets if not path.endswith(" (deleted)")}


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "gone"
