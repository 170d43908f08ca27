"""Ray nodes as KubeRay's containers start them: `ray start --block` in a shell, with a token."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from up_process import ROOT, free_port
from waiting import look_until

START_S = 180.0
END_S = 15.0
SMALL_STORE = 78 << 20  # bytes; Ray accepts no smaller one


class RayStart:
    def __init__(self, home: Path, folder: str, **environment: str) -> None:
        """
        Args:
            home: of the user that starts it; logs of the nodes are there too.
            folder: for Ray's sessions; short.
            environment: beyond what a launch file sets.
        """
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "HOME": str(home),
            "XDG_STATE_HOME": "",
            "XDG_CACHE_HOME": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "a token of this test",
            **environment,
        }
        self._home, self._folder = home, folder
        self._nodes: list[psutil.Popen] = []

    def head(self, *options: str) -> psutil.Popen:
        port = self.address.rpartition(":")[2]
        return self._start("--head", f"--port={port}", f"--temp-dir={self._folder}", "--num-cpus=0", *options)

    def worker(self, *options: str) -> psutil.Popen:
        return self._start(f"--address={self.address}", *options)

    def log(self, node: psutil.Popen) -> str:
        return (self._home / f"ray-{self._nodes.index(node)}.log").read_text(errors="replace")

    def wait_started(self, node: psutil.Popen) -> None:
        def started(said: str) -> bool:
            assert node.poll() is None, said
            return "Ray runtime started" in said

        look_until(lambda: self.log(node), started, START_S)

    def end(self) -> None:
        family = [process for node in self._nodes for process in [node, *_descendants(node)]]
        for node in reversed(self._nodes):
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=END_S)
        for each in alive:
            each.kill()

    def _start(self, *options: str) -> psutil.Popen:
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block"]
        words.append(f"--object-store-memory={SMALL_STORE}")
        with (self._home / f"ray-{len(self._nodes)}.log").open("wb") as log:
            node = psutil.Popen(
                ["/bin/bash", "-c", "--", f"ulimit -n 65536; {shlex.join(words)}"],  # as KubeRay's containers have it
                env=self.environment,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._nodes.append(node)
        return node


@contextmanager
def ray_start(home: Path, **environment: str) -> Iterator[RayStart]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-", ignore_cleanup_errors=True) as folder:
        started = RayStart(home, folder, **environment)
        try:
            yield started
        finally:
            started.end()


def _descendants(process: psutil.Popen) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found
