"""Which software measures: the commit of a checkout of our own, and whether it was changed."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

# What decides how anything is measured; the rest of a checkout may change meanwhile.
SOURCES = (":/", ":(top,exclude)docs", ":(top,exclude)tests", ":(top,exclude)benchmarks", ":(top,exclude)*.md")
GIT_TIMEOUT_S = 10.0


def commit(file: Path = Path(__file__)) -> str:
    """With "+" and a digest of what was changed in it; empty where the software is no checkout of its own, as after an
    installation, also one inside somebody else's repository.

    Args:
        file: of the software.
    """
    folder = file.resolve().parent
    if not _git(folder, "ls-files", "--error-unmatch", file.name):
        return ""
    changed = _git(folder, "diff", "HEAD", "--", *SOURCES)
    digest = f"+{hashlib.sha256(changed).hexdigest()[:12]}" if changed else ""
    return _git(folder, "rev-parse", "HEAD").decode().strip() + digest


def _git(folder: Path, *arguments: str) -> bytes:
    """Empty where there is no git, or it has nothing to say."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return b""
    return done.stdout
