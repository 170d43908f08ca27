"""Sections of an experiment's page: what each configuration sustains, what phases cost, how busy they were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from loadgen.experiment.analysis import Measured, label_of, load_text, varying_axes, without_load
from loadgen.experiment.capacity import Capacity
from loadgen.experiment.cells import LOADS
from loadgen.experiment.maps import best_among
from loadgen.report import figures
from loadgen.report.chart_sections import Limits, LoadPoint, charts_of_distributions, curves
from loadgen.report.charts import COLOURS, Line, legend, line_chart
from loadgen.report.figures import Estimate
from loadgen.report.sections import cell, table

MAX_GROUPS = 8  # of charts on the page; more are in the tables and the files
MIN_SAMPLES = 3  # that make a line
COLOUR_OF = {"prefill": 1, "decode": 3}  # as in the charts of costs
LOAD_TITLES = {
    "rate": "load, requests/s",
    "rate_per_worker": "load, requests/s a worker",
    "input_tokens_per_s": "load, prompt tokens/s",
    "concurrency": "load, requests at a time",
    "speedup": "load, times the trace’s speed",
}


def capacity_table(capacities: Sequence[Capacity], attainment: float) -> str:
    """The most that each configuration sustains, the best first, and last those of which it is not known."""
    ordered = sorted(capacities, key=rank)
    best_one = best_among(ordered)
    rows = []
    for each in ordered:
        best = ' class="best"' if each is best_one else ""
        goodput = None if each.per_worker is None else Estimate(each.per_worker, each.interval, each.num_seeds)
        rows.append(
            f"<tr{best}><th>{escape(each.label)}</th>{cell(goodput, figures.GOODPUT)}"
            f"<td>{escape(load_of(each))}<small>{escape(each.note)}</small></td>"
            f"{cell(each.in_time, figures.ATTAINMENT)}<td>{escape(load_text(each.cell, each.cell.load))}</td></tr>"
        )
    head = "<th>Configuration</th><th>Goodput a worker</th><th>at a load of</th><th>Attainment</th><th>at</th>"
    return table(head, rows) + (
        f'<p class="soft">{escape(how_chosen(attainment))} Goodput is divided by the workers; –: not known. '
        "Attainment: at that load, else at the lowest that is known.</p>"
    )


def how_chosen(attainment: float) -> str:
    """By which rule a configuration's load was chosen, and what its interval leaves out."""
    share = f"{100 * attainment:g} %"
    return (
        f"Sustained is the highest load at which {share} of the requests kept both limits, as the mean over all seeds, "
        "and so they did at all lower loads; 0 where there is none. Failures are misses; invalid runs and those to "
        "come count neither way. Goodput and its interval are those of the seeds at that load. The interval leaves out "
        f"that the load was chosen by the same runs. {share} in time is certain where the whole interval of the "
        "attainment is there. Found among the loads tried, not between them."
    )


def load_of(capacity: Capacity) -> str:
    """The load that is sustained."""
    return load_text(capacity.cell, capacity.cell.load) if capacity.sustained else "–"


def rank(capacity: Capacity) -> float:
    """The best first, those that are not known last."""
    return math.inf if capacity.per_worker is None else -capacity.per_worker


def load_charts_of(cells: Sequence[Measured], limits: Limits) -> str:
    """Goodput a worker, attainment and latencies over the load, a line for each configuration; of valid runs."""
    groups: dict[str, dict[str, list[Measured]]] = {}
    varying = [name for name in varying_axes(each.cell for each in cells) if name not in LOADS]
    for each in sorted((each for each in cells if each.valid), key=lambda each: each.cell.load):
        label = label_of(without_load(each.cell), varying)
        groups.setdefault(label.partition(", ")[2], {}).setdefault(label, []).append(each)
    made = []
    for setting, lines in groups.items():
        known = [(name, mine) for name, mine in lines.items() if len(mine) > 1]
        for first in range(0, len(known), COLOURS):
            made.append((setting, _over_load(dict(known[first : first + COLOURS]), limits)))
    if len(made) <= 1:
        return "".join(html for _, html in made)
    return "".join(
        f"<details{' open' if not number else ''}><summary>{escape(setting or 'all')}</summary>{html}</details>"
        for number, (setting, html) in enumerate(made)
    )


def use_charts(cells: Sequence[Measured]) -> str:
    """How many workers each phase kept busy over time, and how full their KV pools were where a cluster was looked at;
    of the first run of each cell."""
    made = [_use_of(each) for each in cells]
    made = [each for each in made if each]
    if not made:
        return ""
    shown_first, rest = "".join(made[:MAX_GROUPS]), made[MAX_GROUPS:]
    more = (
        f'<details><summary>{len(rest)} more</summary><div class="charts">{"".join(rest)}</div></details>'
        if rest
        else ""
    )
    caption = (
        '<p class="soft">The first run of each. A worker is busy with a phase while it has a request in it, by what '
        "answered requests report; one that does both can be counted twice. KV in use: share of the blocks of a pool, "
        "looked at once a second; there is none in virtual time.</p>"
    )
    names = legend(list(COLOUR_OF.items()))
    return f'{names}<div class="charts">{shown_first}</div>{more}{caption}'


def _use_of(each: Measured) -> str:
    line, use, label = each.runs[0].result.summary.timeline, each.runs[0].use, each.marked.label
    busy = [
        Line(phase, [(round(index * line.slot_s, 3), value) for index, value in enumerate(values)], COLOUR_OF[phase])
        for phase, values in line.busy_workers.items()
    ]
    pools = {"prefill": use.prefill, "decode": use.decode} if use is not None else {}
    held = [
        Line(name, [(at, 100 * value) for at, value in zip(use.at_s, pool.kv_used, strict=True)], COLOUR_OF[name])
        for name, pool in pools.items()
        if use is not None and pool is not None and len(pool.kv_used) >= MIN_SAMPLES
    ]
    seconds = "time since the start, s"
    parts = (
        (f"{label}: busy workers", line_chart(label, busy, seconds, "workers", log_x=False)),
        (f"{label}: KV in use", line_chart(label, held, seconds, "share of the blocks", log_x=False, percent=True)),
    )
    return "".join(f'<figure class="card"><h3>{escape(name)}</h3>{chart}</figure>' for name, chart in parts if chart)


def distribution_charts(cells: Sequence[Measured]) -> str:
    """Distributions of latencies, a group for each load and length, folded up."""
    groups: dict[str, list[Measured]] = {}
    for each in cells:
        groups.setdefault(each.label.partition(", ")[2] or "all", []).append(each)
    made = []
    for name, mine in groups.items():
        for first in range(0, len(mine), COLOURS):
            inner = charts_of_distributions([each.marked for each in mine[first : first + COLOURS]])
            made.append(f"<details><summary>{escape(name)}</summary>{inner}</details>")
    return "".join(made)


def _over_load(lines: Mapping[str, Sequence[Measured]], limits: Limits) -> str:
    groups = {
        name: [LoadPoint(each.cell.load, each.series, each.per_worker) for each in mine] for name, mine in lines.items()
    }
    if not groups:
        return ""
    name = next(iter(lines.values()))[0].cell.load_name
    return curves(groups, limits, LOAD_TITLES[name], "requests/s a worker in time")
