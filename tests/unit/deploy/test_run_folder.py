"""A run's folder goes with the run, or with the next one; its logs stay for a while."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from deploy.run_folder import KEPT_RUNS, RunFolder, log_folder, remove_abandoned
from deploy.running import Running, RunningFiles


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


def test_two_that_start_at_once_do_not_take_each_others_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first's before it is locked."""
    lock, taken = fcntl.flock, list[Path]()

    def locked_too_late(descriptor: int, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            remove_abandoned(tmp_path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", locked_too_late)
    folder = RunFolder(tmp_path)
    assert taken[0] != folder.path
    assert list(tmp_path.iterdir()) == [folder.path]
    assert (folder.path / "lock").exists()


def test_who_cleans_up_at_the_same_time_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "diptych-gone" / "lock"
    monkeypatch.setattr(Path, "glob", lambda _base, _pattern: [gone])
    remove_abandoned(tmp_path)


def make_logs(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    folders = []
    for second in range(KEPT_RUNS + 2):
        monkeypatch.setattr(time, "strftime", lambda _format, at=second: f"20260101-00000{at}")
        monkeypatch.setattr(os, "getpid", lambda pid=1_000 + second: pid)
        folders.append(log_folder(environment))
    return folders


def test_logs_of_the_last_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = make_logs({"XDG_STATE_HOME": str(tmp_path)}, monkeypatch)
    assert sorted((tmp_path / "diptych/logs").iterdir()) == folders[-KEPT_RUNS:]


def test_logs_of_a_cluster_that_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = Running(name="old", admin_url="", admin_key="", pid=1_000, created_at_s=0.0)
    monkeypatch.setattr(RunningFiles, "alive", lambda _self: [still])
    folders = make_logs({"XDG_STATE_HOME": str(tmp_path)}, monkeypatch)
    assert sorted((tmp_path / "diptych/logs").iterdir()) == [folders[0], *folders[-KEPT_RUNS:]]
