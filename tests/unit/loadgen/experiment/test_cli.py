"""Stopped in the middle and started again, as a user does it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from experiments import TEXT, Played

from loadgen.client import told
from loadgen.client.run import ShardFailed
from loadgen.experiment import cli
from loadgen.experiment.shape import SystemUnavailable


def test_a_stopped_experiment_says_how_to_go_on_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "e.toml", tmp_path / "out"
    file.write_text(TEXT)
    first, second = Played(fail_after=5), Played()
    monkeypatch.setattr(cli, "_backend", lambda *of: first)
    monkeypatch.setattr("sys.argv", ["loadgen", "run", "e.toml", "--out", "out"])
    assert cli.run_experiment(file, out=out) == told.INTERRUPTED == 130
    assert "To go on: python -m loadgen run e.toml --out out" in capsys.readouterr().err
    assert "5 of 48 runs, not finished" in (out / "report.html").read_text()

    monkeypatch.setattr(cli, "_backend", lambda *of: second)
    assert cli.run_experiment(file, out=out) == 0
    assert len(second.configs) == 43
    assert "48 runs" in (out / "report.html").read_text()
    measured = len(second.configs)
    assert cli.run_experiment(file, out=out, report_only=True) == 0
    assert len(second.configs) == measured


class Signalled(Played):
    """Gets a signal in its third run; then its generator dies, as of a signal to the whole group, or goes on."""

    def __init__(self, number: signal.Signals | None, *, dies: bool) -> None:
        super().__init__()
        self._number, self._dies = number, dies

    async def measure(self, *of: Any) -> Any:
        if len(self.configs) < 2:
            return await super().measure(*of)
        if self._number is not None:
            os.kill(os.getpid(), self._number)
        if self._dies:
            raise ShardFailed("a process of the load generator ended with status -15")
        return await asyncio.Event().wait()


@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_over_and_says_how_to_go_on(
    number: signal.Signals,
    status: int,
    dies: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out, backend = tmp_path / "e.toml", tmp_path / "out", Signalled(number, dies=dies)
    file.write_text(TEXT)
    monkeypatch.setattr(cli, "_backend", lambda *of: backend)
    assert cli.run_experiment(file, out=out) == status
    assert "stopped; what is over is kept. To go on: " in capsys.readouterr().err
    assert len(list((out / "runs").glob("*.json"))) == 2
    assert "2 of 48 runs, not finished" in (out / "report.html").read_text()
    assert backend.closed == 1


def test_a_generator_that_dies_by_itself_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e.toml"
    file.write_text(TEXT)
    monkeypatch.setattr(cli, "_backend", lambda *of: Signalled(None, dies=True))
    assert cli.run_experiment(file, out=tmp_path / "out") == 1
    assert "ended with status -15" in capsys.readouterr().err


def test_a_generator_that_is_always_late_has_a_status_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "e.toml"
    file.write_text(TEXT.replace("[1, 2, 3]", "[1]", 1))
    monkeypatch.setattr(cli, "_backend", lambda *of: Played(late=2))
    assert cli.run_experiment(file, out=tmp_path / "out") == cli.INVALID == 3


def test_a_run_of_which_nothing_is_measured_is_found_before_an_hour_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, backend = tmp_path / "e.toml", Played()
    file.write_text(TEXT.replace("duration_s = 0.95", "duration_s = 0.95\nwarmup_s = 1"))
    monkeypatch.setattr(cli, "_backend", lambda *of: backend)
    assert cli.run_experiment(file, out=tmp_path / "out") == 1
    assert "nothing is left" in capsys.readouterr().err
    assert backend.configs == []


def test_why_there_is_no_system_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Missing(Played):
        async def shape(self, shape: object) -> tuple[str, str]:
            raise SystemUnavailable("diptych up ended with 1")

    file, backend = tmp_path / "e.toml", Missing()
    file.write_text(TEXT)
    monkeypatch.setattr(cli, "_backend", lambda *of: backend)
    assert cli.run_experiment(file, out=tmp_path / "out") == 1
    assert "loadgen: diptych up ended with 1" in capsys.readouterr().err
    assert backend.closed == 1
