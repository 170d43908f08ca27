"""An experiment's figures for other programs, and for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from loadgen.experiment.analysis import Capacity, Comparison, Measured, capacities, comparisons, simulated
from loadgen.experiment.cells import LOADS, Cell
from loadgen.experiment.maps import region
from loadgen.experiment.results import State
from loadgen.report import figures
from loadgen.report.export import figure_cells, figures_of, word
from loadgen.report.figures import ALL, bare
from loadgen.report.result import UNKNOWN_IF_SIMULATED

AXES = tuple(name for name in Cell.__struct_fields__ if name not in LOADS)
SHOWN = (
    ("goodput/s", figures.GOODPUT),
    ("in time", figures.ATTAINMENT),
    ("TTFT p50", figures.LATENCIES["ttft"][1]),
    ("TTFT p99", figures.LATENCIES["ttft"][4]),
    ("TPOT p50", figures.LATENCIES["tpot"][1]),
    ("TPOT p99", figures.LATENCIES["tpot"][4]),
    ("ITL p99", figures.LATENCIES["itl"][4]),
)


def csv_text(cells: Sequence[Measured]) -> str:
    """A row for each run: its cell, then every figure. Latencies in milliseconds, shares from 0 to 1."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(
        [*AXES, *LOADS, "seed", "started_at", "valid", "simulated", "attempts", *(figure.key for figure in ALL)]
    )
    for each in cells:
        for run in each.runs:
            values = [getattr(each.cell, name) for name in (*AXES, *LOADS)]
            head = ["" if value is None else value for value in values]
            result = run.result
            told = [run.seed, result.started_at, word(result.valid), word(result.simulated), run.attempts]
            writer.writerow([*head, *told, *figure_cells(run.result)])
    return made.getvalue()


def json_bytes(state: State, cells: Sequence[Measured]) -> bytes:
    """The experiment, its cells with their figures, what each configuration sustains, and the pairs compared."""
    found = capacities(cells, state.experiment.slo.attainment)
    content = {
        "schema": state.schema,
        "experiment": state.experiment,
        "simulated": simulated(cells),
        "machine": cells[0].runs[0].result.machine if cells else None,
        "cells": [_cell(each) for each in cells],
        "capacities": [_capacity(each) for each in found],
        "best": _capacity(max(found, key=lambda each: each.per_worker)) if found else None,
        "comparisons": [_comparison(each) for each in comparisons(cells)],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def summary_text(state: State, cells: Sequence[Measured]) -> str:
    return "\n".join(_lines(state, cells))


def _lines(state: State, cells: Sequence[Measured]) -> Iterator[str]:
    made = state.experiment
    width = max([len(each.label) for each in cells], default=4) + 2
    label = {True: "  (simulated)", None: f"  ({UNKNOWN_IF_SIMULATED})", False: ""}[simulated(cells)]
    yield f"{made.name}{label}: TTFT ≤ {made.slo.ttft_ms:g} ms, TPOT ≤ {made.slo.tpot_ms:g} ms; means over seeds"
    yield f"  {'':<{width}}" + "".join(f"{title:>11}" for title, _ in SHOWN) + "  runs"
    for each in cells:
        estimates = [(each.series.estimate(figure), figure.unit) for _, figure in SHOWN]
        values = "".join(f"{'–' if found is None else bare(found.value, unit):>11}" for found, unit in estimates)
        yield f"  {each.label:<{width}}{values}  {len(each.runs)}{'' if each.series.valid else ' INVALID'}"
    found_capacities = capacities(cells, made.slo.attainment)
    yield f"  goodput a worker, sustained with {100 * made.slo.attainment:g} % in time:"
    for found in sorted(found_capacities, key=lambda each: -each.per_worker):
        sure = f" [{found.interval.low:.3g}, {found.interval.high:.3g}]" if found.interval else ""
        note = (
            " (the highest load tried)" if found.at_the_end else "" if found.sustained else " (not at the lowest load)"
        )
        yield f"    {found.label:<{width}}{found.per_worker:.3g}/s{sure}{note}"
    if pairs := comparisons(cells):
        yield f"  {region(pairs)}"


def _cell(measured: Measured) -> dict[str, Any]:
    return {
        "cell": measured.cell,
        "label": measured.label,
        "valid": measured.series.valid,
        "simulated": measured.simulated,
        "runs": len(measured.runs),
        "figures": figures_of(measured.series),
        "balance": {"prompt": measured.balance("prompt"), "output": measured.balance("output")},
        "use": [run.use for run in measured.runs],
        "failures": [run.result.summary.failures for run in measured.runs],
    }


def _capacity(capacity: Capacity) -> dict[str, Any]:
    return {
        "label": capacity.label,
        "prefill": capacity.cell.prefill,
        "decode": capacity.cell.decode,
        "load": {capacity.cell.load_name: capacity.cell.load} if capacity.sustained else None,
        "goodput_per_worker": capacity.per_worker,
        "interval": capacity.interval,
        "highest_load_tried": capacity.at_the_end,
    }


def _comparison(pair: Comparison) -> dict[str, Any]:
    return {
        "disaggregated": pair.disaggregated.label,
        "colocated": pair.colocated.label,
        "input_tokens": pair.disaggregated.cell.input_tokens,
        "load": {pair.disaggregated.cell.load_name: pair.disaggregated.cell.load},
        "in_time": [pair.disaggregated.attainment, pair.colocated.attainment],
        "goodput_difference": pair.difference,
        "interval": pair.interval,
        "verdict": pair.verdict,
    }
