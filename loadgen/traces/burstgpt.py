"""BurstGPT: `Timestamp` in seconds, `Model`, `Request tokens`, `Response tokens`, `Total tokens`, `Log Type`.

Newer releases add `Session ID` and `Elapsed time`, which are not used. Rows with 0 response tokens are calls that
failed there; they are left out. Lengths and times only: no hash ids.
Source: https://github.com/HPMLL/BurstGPT (arXiv:2401.17644).
"""

from __future__ import annotations

from pathlib import Path

from loadgen.traces.lines import checked_limit
from loadgen.traces.mooncake import TraceRequest
from loadgen.traces.tables import read_table, seconds, whole

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_burstgpt(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """The calls that succeeded in order of arrival, the first at 0 ms.

    Raises:
        ValueError: a column is missing or a value is wrong; says which line. Or `limit` is below 1.
        OSError: the file cannot be read.
    """
    limit, rows = checked_limit(limit), read_table(path, COLUMNS, _row)
    rows = sorted((row for row in rows if row[1] > 0 and row[2] > 0), key=lambda row: row[0])
    start_s = rows[0][0] if rows else 0.0
    return [TraceRequest((at_s - start_s) * 1e3, prompt, response) for at_s, prompt, response in rows[:limit]]


def _row(row: dict[str, str]) -> tuple[float, int, int]:
    return seconds(row["Timestamp"]), whole(row["Request tokens"]), whole(row["Response tokens"])
