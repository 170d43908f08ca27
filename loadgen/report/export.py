"""Figures for other programs: one CSV row for each run, and JSON of every series with its intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from loadgen.report.figures import ALL, Series
from loadgen.report.result import RunResult

FIRST_COLUMNS = ("series", "seed", "started_at", "valid", "simulated")


def csv_text(series: Sequence[Series]) -> str:
    """Latencies in milliseconds, shares from 0 to 1; empty where nothing was measured, or known."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow([*FIRST_COLUMNS, *(figure.key for figure in ALL)])
    for each in series:
        for run in each.results:
            told = [each.label, run.config.seed, run.started_at, word(run.valid), word(run.simulated)]
            writer.writerow([*told, *figure_cells(run)])
    return made.getvalue()


def word(value: bool | None) -> str:
    return "" if value is None else str(value).lower()


def figure_cells(run: RunResult) -> list[str]:
    """One for each of `ALL`."""
    values = (figure.value(run.summary) for figure in ALL)
    return ["" if value is None else f"{value:.6g}" for value in values]


def json_bytes(series: Sequence[Series]) -> bytes:
    """A list of series: their configuration, and each figure with its 95 % interval."""
    return msgspec.json.format(msgspec.json.encode([_series(each) for each in series]), indent=2) + b"\n"


def figures_of(series: Series) -> dict[str, Any]:
    """By key, each with its 95 % interval; those that were not measured are left out."""
    estimates = {figure.key: series.estimate(figure) for figure in ALL}
    return {key: {"value": each.value, "interval": each.interval} for key, each in estimates.items() if each}


def _series(series: Series) -> dict[str, Any]:
    return {
        "series": series.label,
        "valid": series.valid,
        "simulated": series.simulated,
        "runs": len(series.results),
        "remarks": list(dict.fromkeys(remark for each in series.results for remark in each.remarks)),
        "config": series.first.config,
        "figures": figures_of(series),
    }
