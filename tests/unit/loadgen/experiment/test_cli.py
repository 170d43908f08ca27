"""Stopped in the middle and started again, as a user does it."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments import TEXT, Played

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
    assert cli.run_experiment(file, out=out) == cli.STOPPED == 130
    assert "To go on: python -m loadgen run e.toml --out out" in capsys.readouterr().err
    assert "5 of 48 runs, not finished" in (out / "report.html").read_text()

    monkeypatch.setattr(cli, "_backend", lambda *of: second)
    assert cli.run_experiment(file, out=out) == 0
    assert len(second.configs) == 43
    assert "48 runs" in (out / "report.html").read_text()
    measured = len(second.configs)
    assert cli.run_experiment(file, out=out, report_only=True) == 0
    assert len(second.configs) == measured


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
