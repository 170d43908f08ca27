"""The series of docs/metrics.md, and those that a text of /metrics has: by family, with the suffix that users write."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> set[str]:
    """What the tables of a router's metrics have in backticks in their first column."""
    rows = (line.split("|")[1] for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    return {name.partition("{")[0] for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def exported(text: str) -> set[str]:
    """Of Prometheus' text format. A family's own creation times are no series of ours."""
    families = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    return {name for name in families if not name.endswith("_created")}
