"""Azure's LLM inference traces (2023): `TIMESTAMP,ContextTokens,GeneratedTokens`, times of day with seven decimals.

Lengths and times only: nothing is known of shared prefixes, so requests have no hash ids.
Source: https://github.com/Azure/AzurePublicDataset (CC-BY-4.0); the 2024 files have the same columns.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from loadgen.traces.lines import checked_limit
from loadgen.traces.mooncake import TraceRequest
from loadgen.traces.tables import read_table, whole

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """The requests in order of arrival, the first at 0 ms. Requests without a prompt are left out.

    Raises:
        ValueError: a column is missing or a value is wrong; says which line. Or `limit` is below 1.
        OSError: the file cannot be read.
    """
    limit, rows = checked_limit(limit), read_table(path, COLUMNS, _row)
    rows = sorted((row for row in rows if row[1] > 0), key=lambda row: row[0])
    start_s = rows[0][0] if rows else 0.0
    return [TraceRequest((at_s - start_s) * 1e3, prompt, max(1, generated)) for at_s, prompt, generated in rows[:limit]]


def _row(row: dict[str, str]) -> tuple[float, int, int]:
    return _seconds(row["TIMESTAMP"]), whole(row["ContextTokens"]), whole(row["GeneratedTokens"])


def _seconds(text: str) -> float:
    """Since 1970, without a time zone. The seventh decimal is beyond `datetime`, so the fraction is read by hand."""
    moment, _, fraction = text.strip().partition(".")
    fraction = fraction.split("+")[0].removesuffix("Z")
    naive = datetime.fromisoformat(moment.removesuffix("Z").split("+")[0])
    return (naive - datetime(1970, 1, 1)).total_seconds() + (float(f"0.{fraction}") if fraction else 0.0)
