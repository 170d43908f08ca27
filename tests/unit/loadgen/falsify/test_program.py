"""Which program measures: its commit, if it has one of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from loadgen.falsify.program import program


def git(folder: Path, *words: str) -> str:
    by = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *by, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_is_told_by_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("print(1)\n")
    alone = program(file)
    assert alone.startswith("diptych ")
    assert "commit" not in alone
    git(tmp_path, "init")
    assert program(file) == alone  # installed into somebody's repository
    git(tmp_path, "add", "program.py")
    git(tmp_path, "commit", "--message", "First")
    clean = program(file)
    assert clean == f"{alone}, commit {git(tmp_path, 'rev-parse', 'HEAD')}"
    file.write_text("print(2)\n")
    assert program(file) == f"{clean}, with uncommitted changes"
