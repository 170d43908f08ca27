"""An experiment's figures for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from loadgen.experiment.analysis import Measured, simulated
from loadgen.experiment.capacity import Capacity, capacities
from loadgen.experiment.cells import LOADS, Cell
from loadgen.experiment.comparison import Comparison, comparisons
from loadgen.experiment.maps import best_among
from loadgen.experiment.results import State
from loadgen.experiment.sections import how_chosen
from loadgen.report.export import figure_cells, figures_of, word
from loadgen.report.figures import ALL

AXES = tuple(name for name in Cell.__struct_fields__ if name not in LOADS)


def csv_text(cells: Sequence[Measured]) -> str:
    """A row for each run: its cell, then every figure. Latencies in milliseconds, shares from 0 to 1."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(
        [*AXES, *LOADS, "seed", "started_at", "valid", "simulated", "attempts", *(figure.key for figure in ALL)]
    )
    for each in cells:
        for run in (*each.runs, *each.left_out):
            values = [getattr(each.cell, name) for name in (*AXES, *LOADS)]
            head = ["" if value is None else value for value in values]
            result = run.result
            told = [run.seed, result.started_at, word(result.valid), word(result.simulated), run.attempts]
            writer.writerow([*head, *told, *figure_cells(run.result)])
    return made.getvalue()


def json_bytes(state: State, cells: Sequence[Measured]) -> bytes:
    """The experiment, its cells with their figures, what each configuration sustains, and the pairs compared."""
    found = capacities(cells, state.experiment)
    best = best_among(found)
    content = {
        "schema": state.schema,
        "experiment": state.experiment,
        "origin": state.origin,
        "simulated": simulated(cells),
        "machine": cells[0].runs[0].result.machine if cells else None,
        "cells": [_cell(each) for each in cells],
        "capacities": [_capacity(each) for each in found],
        "capacities_are": how_chosen(state.experiment.slo.attainment),
        "best": _capacity(best) if best else None,
        "comparisons": [_comparison(each) for each in comparisons(cells)],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _cell(measured: Measured) -> dict[str, Any]:
    return {
        "cell": measured.cell,
        "label": measured.label,
        "valid": measured.series.valid,
        "simulated": measured.simulated,
        "runs": len(measured.runs),
        "left_out": [{"seed": run.seed, "invalid_because": run.result.invalid_because} for run in measured.left_out],
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
        "seeds": capacity.num_seeds,
        "in_time": capacity.in_time.value if capacity.in_time else None,
        "in_time_interval": capacity.in_time.interval if capacity.in_time else None,
        "certain": capacity.certain,
        "there_may_be_more": capacity.at_the_end,
        "runs_missing": capacity.num_missing,
        "runs_invalid": capacity.num_invalid,
        "note": capacity.note,
    }


def _comparison(pair: Comparison) -> dict[str, Any]:
    return {
        "disaggregated": pair.disaggregated.label,
        "colocated": pair.colocated.label,
        "input_tokens": pair.disaggregated.cell.input_tokens,
        "load": {pair.disaggregated.cell.load_name: pair.disaggregated.cell.load},
        "pairs": pair.num_pairs,
        "in_time": pair.in_time,
        "goodput_difference": pair.difference,
        "interval": pair.interval,
        "verdict": pair.verdict,
    }
