"""An experiment as one page that opens without a network: what pays first, then why, then everything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

import msgspec

from loadgen.experiment.analysis import Measured, simulated
from loadgen.experiment.capacity import capacities
from loadgen.experiment.comparison import comparisons
from loadgen.experiment.maps import comparison_table, pd_maps
from loadgen.experiment.results import State
from loadgen.experiment.sections import capacity_table, distribution_charts, load_charts_of, use_charts
from loadgen.report.chart_sections import Limits
from loadgen.report.page import page_of
from loadgen.report.phase_sections import phase_costs
from loadgen.report.sections import CACHES, RATES, comparison, definitions, failures_and_classes, latencies, verdict

WHERE = {"cluster": "on a cluster of its own", "running": "on a running cluster", "sim": "in virtual time"}


def experiment_page(state: State, cells: Sequence[Measured], num_planned: int) -> str:
    """
    Args:
        num_planned: runs of the whole experiment, for a page of an unfinished one.

    Raises:
        ValueError: no cell was measured.
    """
    if not cells:
        raise ValueError("nothing to report: no run of the experiment is over")
    made, series, marked = state.experiment, [each.series for each in cells], [each.marked for each in cells]
    found = capacities(cells, made)
    sections = [
        ("", verdict(series) + _left_out(cells)),
        ("What each configuration sustains", capacity_table(found, made.slo.attainment)),
        ("Prefill and decode workers", pd_maps(found, made.slo.attainment)),
        ("Disaggregated or colocated", comparison_table(comparisons(cells))),
        ("Over the load", load_charts_of(cells, Limits(made.slo.ttft_ms, made.slo.tpot_ms, made.slo.attainment))),
        ("Figures", comparison(series, RATES)),
        ("Latencies", latencies(marked)),
        ("What each phase costs", phase_costs(marked, with_queue=made.backend != "sim")),
        ("Caches, balance and use", comparison(series, CACHES)),
        ("How busy each phase was", use_charts(cells)),
        ("Distributions", distribution_charts(cells)),
        ("Failures and classes of traffic", failures_and_classes(marked)),
        ("What was run", _configuration(state, cells)),
        ("How to read this", definitions(series)),
    ]
    title = f"{made.name} (simulated)" if simulated(cells) else made.name
    return page_of(title, _subtitle(state, cells, num_planned), sections)


def _left_out(cells: Sequence[Measured]) -> str:
    """Invalid runs beside valid ones of their cell."""
    said = [
        f"<li>{escape(each.label)}, seed {run.seed}: {escape('; '.join(run.result.invalid_because))}</li>"
        for each in cells
        for run in each.left_out
    ]
    if not said:
        return ""
    return f'<div class="card verdict invalid"><strong>Left out</strong> of every figure:<ul>{"".join(said)}</ul></div>'


def _subtitle(state: State, cells: Sequence[Measured], num_planned: int) -> str:
    made, num_runs = state.experiment, sum(len(each.runs) + len(each.left_out) for each in cells)
    started = datetime.fromtimestamp(state.started_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    where = WHERE[made.backend] + (", SIMULATED" if simulated(cells) else "")
    whole = f"{num_runs} runs" if num_runs >= num_planned else f"{num_runs} of {num_planned} runs, not finished"
    limits = f"TTFT ≤ {made.slo.ttft_ms:g} ms and TPOT ≤ {made.slo.tpot_ms:g} ms"
    about = f"<p>{escape(made.about)}</p>" if made.about else ""
    text = f"Experiment, {whole}, {len(made.seeds)} seeds, {started}, {where}. Limits of goodput: {limits}"
    return f'<p class="soft">{escape(text)}</p>{about}'


def _configuration(state: State, cells: Sequence[Measured]) -> str:
    first = cells[0].runs[0].result
    content = {
        "experiment": state.experiment,
        "origin": state.origin,
        "machine": first.machine,
        "salt": state.salt,
    }
    raw = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    return f"<details><summary>The experiment</summary><pre>{escape(raw)}</pre></details>"
