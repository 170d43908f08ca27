"""Files of one JSON object a line, read into structs, with errors that say where; and how much of a file is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

Line = TypeVar("Line")
Made = TypeVar("Made")


def checked_limit(limit: int | None) -> int | None:
    """At most so many requests of a file; None: all.

    Raises:
        ValueError: it is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit}; a trace is read whole, or at least one request of it")
    return limit


def read_lines(path: Path, line_type: type[Line], convert: Callable[[Line], Made]) -> list[Made]:
    """Each line that is not empty, decoded and converted.

    Raises:
        ValueError: a line is not JSON of this shape, or `convert` raised it; names the file and the line.
        OSError: the file cannot be read.
    """
    decoder = msgspec.json.Decoder(line_type)
    made = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    made.append(convert(decoder.decode(line)))
                except ValueError as error:
                    raise ValueError(f"{path.name}, line {number}: {error}") from None
    return made
