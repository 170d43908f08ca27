"""Which program measures, for the pre-registration: its version, and its commit where it runs from a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import diptych


def program(file: Path = Path(__file__)) -> str:
    """For example "diptych 0.1.0, commit 2f9c…, with uncommitted changes".

    Args:
        file: of the program. Where it is installed inside somebody else's repository git does not know it, and there is
            no commit.
    """
    said = f"diptych {diptych.__version__}"
    if not _git(file.parent, "ls-files", file.name):
        return said
    changes = ", with uncommitted changes" * bool(_git(file.parent, "status", "--porcelain", "--untracked-files=no"))
    return f"{said}, commit {_git(file.parent, 'rev-parse', 'HEAD')}{changes}"


def _git(folder: Path, *words: str) -> str:
    """Empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
