"""`diptych up` as a user runs it: one command, a real answer, and nothing left behind; or a reason and an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from waiting import look_until

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0
SMALL = ["--kv-cache-mb", "8", "--max-tokens", "12", "--drain-timeout", "5", "--remote-prefill", "always"]


class Up:
    """One run of the command, without a terminal, in a home of its own."""

    def __init__(self, home: Path, model: Path, port: int | None = None, *more: str) -> None:
        self.port = port or free_port()
        self.output = home / "output"
        command = [sys.executable, "-m", "deploy.cli", "up", "--model", str(model), "--http-port", str(self.port)]
        self.environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": "", "XDG_STATE_HOME": ""}
        with self.output.open("wb") as output:
            self.process = psutil.Popen(
                [*command, *SMALL, *more],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.family: dict[int, psutil.Process] = {}
        self._folders: set[str] = set()

    def command(self, *words: str) -> str:
        """Another `diptych` command of the same user; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait(self) -> int:
        def code() -> int | None:
            self.look()
            return self.process.poll()

        look_until(code, lambda code: code is not None, WAIT_S)
        return int(self.process.wait())

    def wait_for(self, text: str) -> None:
        def said() -> str:
            ended = self.process.poll() is not None  # looked at first: then what it said last is there
            assert text in self.text or not ended, self.text
            return self.text

        look_until(said, lambda said: text in said, WAIT_S)
        self.look()

    def look(self) -> None:
        """Remember every process there is and the folder it works in, to ask for them later."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.process.children(recursive=True):
                self.family[process.pid] = process
                self._folders |= set(re.findall(r"/tmp/diptych-[^/ ]+", " ".join(process.cmdline())))

    @property
    def text(self) -> str:
        return self.output.read_text()

    def remains(self) -> list[object]:
        """Processes and folders that outlived it."""
        processes = [p for p in self.family.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return [*processes, *filter(os.path.exists, self._folders)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def up(model: Path, tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path, model)
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGTERM)
        running.wait()


def test_asks_answers_replaces_what_dies_and_leaves_nothing(up: Up) -> None:
    up.wait_for("Ctrl-C stops everything")
    text = up.text
    assert re.search(r"prefill-\S+ +prompt tokens: \d+ computed", text)
    assert re.search(r"decode-\S+ +prompt tokens: \d+ transferred; \d+ tokens generated", text)
    assert re.search(r"KV transfer +[\d,]+ bytes in [\d.]+ ms", text)
    assert "time to first token" in text
    assert "inter-token latency" in text
    assert f"curl -N http://127.0.0.1:{up.port}/v1/chat/completions" in text

    psutil.Process(int(re.findall(r"decode-\S+ runs \(pid (\d+)\)", text)[0])).kill()
    up.wait_for("it crashed or was killed")
    look_until(lambda: up.text, lambda text: len(re.findall(r"decode-\S+ runs", text)) == 2, WAIT_S)
    health = httpx.get(f"http://127.0.0.1:{up.port}/health", trust_env=False).json()
    assert health["details"]["prefill_workers"] == 1

    text = up.command("status")
    assert re.search(r"prefill-\S+ +prefill +127\.0\.0\.1 +\d+ +running +0 +0 ", text), text
    assert "done: prefill=2" in up.command("scale", "prefill=2")
    up.look()
    up.command("down")
    assert up.wait() == 0, up.text
    assert "nothing is left behind" in up.text
    assert up.remains() == []


@pytest.mark.slow
def test_a_controller_that_hangs_is_replaced_and_serving_goes_on(up: Up) -> None:
    up.wait_for("Ctrl-C stops everything")
    before = json.loads(up.command("status", "--json"))
    os.kill(before["controller_pid"], signal.SIGSTOP)
    up.wait_for("the controller was started again")
    after = json.loads(up.command("status", "--json"))
    assert [process["hosting"] for process in after["processes"]] == [p["hosting"] for p in before["processes"]]
    assert not psutil.pid_exists(before["controller_pid"])


@pytest.mark.slow
def test_ctrl_c_stops_everything(up: Up) -> None:
    up.wait_for("Ctrl-C stops everything")
    up.process.send_signal(signal.SIGINT)
    assert up.wait() == 0, up.text
    assert "nothing is left behind" in up.text
    assert up.remains() == []


def test_a_killed_command_leaves_nothing(up: Up) -> None:
    up.wait_for("runs (pid")
    up.process.kill()
    up.wait()
    psutil.wait_procs(list(up.family.values()), timeout=20.0)
    assert up.remains() == []


def test_a_busy_port_is_refused_before_anything_starts(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = Up(tmp_path, model, port)
        assert up.wait() == 1
    assert f"127.0.0.1:{port}" in up.text
    assert "valkey" not in up.text
    assert up.remains() == []


def test_a_door_that_others_reach_is_refused_unless_it_is_said_plainly(model: Path, tmp_path: Path) -> None:
    up = Up(tmp_path, model, None, "--host", "0.0.0.0")
    assert up.wait() == 1
    assert "router.host is 0.0.0.0, which other machines can reach" in up.text
    assert "--insecure-network" in up.text
    assert up.remains() == []


def test_a_model_that_cannot_be_used_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "empty-model"
    folder.mkdir()
    up = Up(tmp_path, folder)
    assert up.wait() == 1
    assert "config.json" in up.text
    assert up.remains() == []
