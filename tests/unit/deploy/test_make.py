"""What `make up` would do on a fresh machine (`make -n`): which torch it takes, and what it hands to the command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def dry_run(venv: Path, *settings: str) -> list[str]:
    """Its commands, up to the one that stays."""
    command = ["make", "-n", f"VENV={venv}", *settings, "up"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def line(lines: list[str], *words: str) -> int:
    """Where the only one with these words is."""
    (index,) = [index for index, each in enumerate(lines) if all(word in each for word in words)]
    return index


def test_torch_comes_first_and_on_its_own(tmp_path: Path) -> None:
    lines = dry_run(tmp_path / "venv")
    made = line(lines, "-m venv")
    assert "--system-site-packages" not in lines[made]
    torch = line(lines, "pip", "'torch==")
    assert made < torch < line(lines, "pip", "-c constraints.txt -e .")
    assert "diptych up" in lines[-1]


def test_an_installed_torch_is_looked_for_and_none_is_installed(tmp_path: Path) -> None:
    lines = dry_run(tmp_path / "venv", "SYSTEM_TORCH=1")
    made, found = line(lines, "-m venv", "--system-site-packages"), line(lines, "import torch")
    assert made < found < line(lines, "pip", "-c constraints.txt -e .")
    assert not [each for each in lines if "pip" in each and "torch==" in each]
    assert [each for each in lines if "SYSTEM_TORCH=1 was given" in each]  # said, where there is none


def test_asking_for_the_other_torch_makes_another_environment(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "stamp-venv-own").touch()
    assert not [each for each in dry_run(venv) if "-m venv" in each]
    assert [each for each in dry_run(venv, "SYSTEM_TORCH=1") if each == f"rm -rf {venv}"]


def test_settings_reach_the_command_as_they_are(tmp_path: Path) -> None:
    *_, last = dry_run(tmp_path / "venv", "PREFILL=2", "DECODE=3", "PROMPT=it's $$HOME; ls", "ONCE=1")
    assert last.endswith("--prefill '2' --decode '3' --prompt 'it'\\''s $HOME; ls' --once")
