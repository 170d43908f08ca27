"""CSV with named columns, read row by row, with errors that say where."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import TypeVar

Row = TypeVar("Row")


def read_table(path: Path, columns: Sequence[str], convert: Callable[[dict[str, str]], Row]) -> list[Row]:
    """Each row of a CSV file with a header, converted. Columns beyond `columns` are handed on too.

    Raises:
        ValueError: a column is missing, or `convert` raised it; names the file and the line.
        OSError: the file cannot be read.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path.name}: no column {', '.join(missing)}; there must be {', '.join(columns)}")
        rows = []
        for row in reader:
            try:
                rows.append(convert(row))
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path.name}, line {reader.line_num}: {error}") from None
    return rows


def whole(text: str) -> int:
    """A count; some published files write them as `12.0`.

    Raises:
        ValueError: it is not a whole number, or below zero.
    """
    number = float(text)
    if not (number.is_integer() and number >= 0):  # neither is infinity, nor what is no number
        raise ValueError(f"{text!r} is not a count of tokens")
    return int(number)


def seconds(text: str) -> float:
    """
    Raises:
        ValueError: it is not a finite number.
    """
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text!r} is no time")
    return number
