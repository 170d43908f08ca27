"""An experiment on a cluster that somebody else started: scaled through its admin door, interrupted, gone on with, and
given back as it was found.
"""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import psutil
import pytest
from tiny_model import make_tiny_model
from up_process import ROOT, UpProcess, free_port
from waiting import until

from deploy.api import Admin
from deploy.reconcile import Kind

TIMEOUT_S = 180.0
EXPERIMENT = """
name = "A map of two"
backend = "running"
seeds = [1]
[sweep]
cells = [{ prefill = 2, decode = 1 }, { prefill = 1, decode = 2 }]
remote_prefill = ["always"]
input_tokens = [48]
output_tokens = [6]
rate = [8.0]
[workload]
vocabulary_size = 250
[arrivals]
duration_s = 1.5
lag_limit_ms = 60_000
settle_requests = 1
[slo]
ttft_ms = 20_000
tpot_ms = 5_000
"""


@pytest.mark.slow
async def test_a_lent_cluster_is_scaled_measured_and_given_back(tmp_path: Path) -> None:
    model, port = make_tiny_model(tmp_path / "tiny"), free_port()
    file, out = tmp_path / "map.toml", tmp_path / "out"
    file.write_text(EXPERIMENT)
    simulated = ["--engine", "sim", "--timing", "fixed:prefill_ms=20,decode_ms=5", "--remote-prefill", "always"]
    pools = ["--prefill", "1", "--decode", "1", "--max-tokens", "2"]
    up = UpProcess(tmp_path, "--model", str(model), "--http-port", str(port), *pools, *simulated)
    async with up:
        await up.wait_ready()
        with up.admin() as admin:
            first = Experiment(up, file, out)
            await until(first.has_runs(1), lambda: first.said, TIMEOUT_S)
            first.process.send_signal(signal.SIGTERM)
            assert await first.ended() == 143, first.said
            assert "stopped; what is over is kept" in first.said
            assert "asked the cluster to be as it was found: prefill=1 decode=1" in first.said
            (kept,) = runs(out)
            content = kept.read_bytes()
            await until(lambda: has(admin, prefill=1, decode=1), lambda: str(admin.status()), TIMEOUT_S)
            up.look()

            second = Experiment(up, file, out)
            assert await second.ended() == 0, second.said
            assert "1 of 2 runs are there already" in second.said
            assert kept.read_bytes() == content
            check_results(out)
            await until(lambda: has(admin, prefill=1, decode=1), lambda: str(admin.status()), TIMEOUT_S)
            await check_it_serves(port)
            up.look()
            admin.down()


class Experiment:
    """The command, as a process."""

    def __init__(self, up: UpProcess, file: Path, out: Path) -> None:
        self._out, self._output = out, file.with_name("said")
        with self._output.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "loadgen", "run", str(file), "--out", str(out)],
                cwd=ROOT,
                env=up.environment,  # in which the cluster is this user's only one
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def has_runs(self, number: int) -> Callable[[], Awaitable[bool]]:
        async def has_so_many() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended with {self.process.returncode}:\n{self.said}")
            return len(runs(self._out)) == number

        return has_so_many

    async def ended(self) -> int:
        return int(await asyncio.to_thread(self.process.wait, TIMEOUT_S))


def runs(out: Path) -> list[Path]:
    return sorted(out.glob("runs/*.json"))


async def has(admin: Admin, **counts: int) -> bool:
    status = await asyncio.to_thread(admin.status)
    pools = {Kind(kind): count for kind, count in counts.items()}
    return status.complete and all(status.wanted[kind] == status.placeable.get(kind) == pools[kind] for kind in pools)


def check_results(out: Path) -> None:
    """Every cell is in all three, by its own numbers of workers, and in none is a real measurement claimed."""
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert {(row["prefill"], row["decode"]) for row in rows} == {("2", "1"), ("1", "2")}
    assert [row["failed"] for row in rows] == ["0", "0"]
    assert [row["remote_share"] for row in rows] == ["1", "1"]
    cells = json.loads((out / "summary.json").read_text())["cells"]
    assert len(cells) == 2
    assert all(use for cell in cells for use in cell["use"])  # how busy pools were, from the admin door
    page = (out / "report.html").read_text()
    assert "A map of two" in page
    assert "simulated" in page


async def check_it_serves(port: int) -> None:
    question = {"model": "tiny-simulated", "prompt": [1, 2, 3, 4], "max_tokens": 3, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False) as client:
        answer = (await client.post("/v1/completions", json=question)).raise_for_status().json()
    assert answer["usage"]["completion_tokens"] == 3
