"""A run's folder goes with the run, or with the next one; its logs stay for a while."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deploy.run_folder import KEPT_RUNS, RunFolder, log_folder


def test_removed_at_the_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (folder.path / "session").mkdir()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next_but_nothing_in_use(tmp_path: Path) -> None:
    abandoned = tmp_path / "diptych-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    foreign = tmp_path / "diptych-without-lock"
    foreign.mkdir()
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    assert set(tmp_path.iterdir()) == {foreign, first.path, second.path}


def test_logs_of_the_last_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    folders = []
    for second in range(KEPT_RUNS + 2):
        monkeypatch.setattr(time, "strftime", lambda _format, at=second: f"20260101-00000{at}")
        folders.append(log_folder(environment))
    assert sorted((tmp_path / "diptych/logs").iterdir()) == folders[-KEPT_RUNS:]
