"""Which of the known formats a recorded trace is in, from its first bytes and its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD_BYTES = 1 << 20  # a Mooncake line of a million tokens is some 20 kB
COLUMNS = {"ContextTokens": "azure", "Request tokens": "burstgpt"}


def recognise(path: Path) -> str:
    """mooncake, bailian, log, sharegpt, azure or burstgpt.

    Raises:
        ValueError: it is none of these; says how to name the format.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if text.startswith("["):
        return "sharegpt"
    first = text.partition("\n")[0]
    kind = _of_line(first) if first.startswith("{") else _of_header(first)
    if not kind:
        raise ValueError(f"the first line of {path.name} is of no known format; name it, e.g. mooncake:{path.name}")
    return kind


def _of_line(line: str) -> str:
    try:
        fields: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return ""
    if "arrival_ms" in fields:
        return "log"
    if "chat_id" in fields:
        return "bailian"
    return "mooncake" if {"timestamp", "input_length"} <= fields.keys() else ""


def _of_header(line: str) -> str:
    columns = {column.strip().strip('"') for column in line.split(",")}
    return next((kind for column, kind in COLUMNS.items() if column in columns), "")
