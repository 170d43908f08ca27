"""A run that is told to stop, or killed, as real processes: nothing goes on sending, and what was measured is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mock_process import MockServer, mock_server
from waiting import look_until

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 30.0


@contextmanager
def long_run(server: MockServer, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Of two processes and many minutes, with answers already there."""
    command = (
        *(sys.executable, "-m", "loadgen", "run", server.base_url, "--model", "mock", "--rate", "50"),
        *("--duration", "600", "--processes", "2", "--workload", "independent:input=8,output=4"),
        *("--lag-limit-ms", "60000", "--out", str(out)),
    )
    with (out / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    try:
        look_until(lambda: server.seen()["requests"], lambda number: number > 20, TIMEOUT_S)
        yield process
    finally:
        process.kill()
        process.wait()


def shards_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def runs(pid: int) -> bool:
    """A zombie, which nobody has fetched, does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_keeps_what_was_measured(number: signal.Signals, status: int, tmp_path: Path) -> None:
    with mock_server() as server, long_run(server, tmp_path) as process:
        shards = shards_of(process)
        assert len(shards) == 2
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == status
        assert not any(map(runs, shards))
        sent = server.seen()["requests"]
    result = json.loads((tmp_path / "run-0.run.json").read_text())
    assert result["invalid_because"] == ["the run was stopped before its end"]
    assert result["summary"]["sent"] >= 20
    assert len((tmp_path / "run-0.requests.jsonl").read_text().splitlines()) == result["summary"]["sent"] <= sent
    assert "stopped before its end" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_killed_it_leaves_nobody_who_sends(tmp_path: Path) -> None:
    with mock_server() as server, long_run(server, tmp_path) as process:
        shards = shards_of(process)
        assert len(shards) == 2
        os.kill(process.pid, signal.SIGKILL)
        try:
            look_until(lambda: [pid for pid in shards if runs(pid)], lambda left: not left, 10.0)
        finally:
            for pid in filter(runs, shards):
                os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in (tmp_path / "said").read_text()
