"""Figures for other programs: one CSV row for each run, and JSON of every series with its intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from loadgen.report.figures import ALL, Series

FIRST_COLUMNS = ("series", "seed", "started_at", "valid")


def csv_text(series: Sequence[Series]) -> str:
    """Latencies in milliseconds, shares from 0 to 1; empty where nothing was measured."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow([*FIRST_COLUMNS, *(figure.key for figure in ALL)])
    for each in series:
        for run in each.results:
            values = (figure.value(run.summary) for figure in ALL)
            cells = ["" if value is None else f"{value:.6g}" for value in values]
            writer.writerow([each.label, run.config.seed, run.started_at, str(run.valid).lower(), *cells])
    return made.getvalue()


def json_bytes(series: Sequence[Series]) -> bytes:
    """A list of series: their configuration, and each figure with its 95 % interval."""
    return msgspec.json.format(msgspec.json.encode([_series(each) for each in series]), indent=2) + b"\n"


def _series(series: Series) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for figure in ALL:
        if (estimate := series.estimate(figure)) is not None:
            figures[figure.key] = {"value": estimate.value, "interval": estimate.interval}
    return {
        "series": series.label,
        "valid": series.valid,
        "runs": len(series.results),
        "config": series.first.config,
        "figures": figures,
    }
