"""Sections of an experiment's page: what each configuration sustains, what phases cost, how busy they were."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadgen.experiment.analysis import Capacity, Measured
from loadgen.report import figures
from loadgen.report.chart_sections import charts_of_distributions
from loadgen.report.charts import COLOURS, Line, legend, line_chart
from loadgen.report.figures import Figure, bare, shown, shown_estimate

MAX_GROUPS = 8  # of charts on the page; more are in the tables and the files
COSTS = (
    *(figure for figure in figures.PHASES if figure.key.endswith(("_mean_ms", "_p99_ms"))),
    figures.PHASES[0],
    *figures.CACHE,
)


def capacity_table(capacities: Sequence[Capacity], attainment: float) -> str:
    """The most that each configuration sustains, the best first."""
    rows = []
    for each in sorted(capacities, key=lambda each: -each.per_worker):
        sure = (
            f"<small>{bare(each.interval.low, '1/s')} to {bare(each.interval.high, '1/s')}</small>"
            if each.interval
            else ""
        )
        load = f"{each.cell.load:g}" if each.sustained else "–"
        note = "the highest tried" if each.at_the_end else "" if each.sustained else "not at the lowest load"
        rows.append(
            f"<tr><th>{escape(each.label)}</th><td>{escape(shown(each.per_worker, '1/s'))}{sure}</td>"
            f"<td>{escape(load)}<small>{note}</small></td></tr>"
        )
    name = capacities[0].cell.load_name.replace("_", " ") if capacities else ""
    head = f"<th>Configuration</th><th>Goodput a worker</th><th>at {escape(name)}</th>"
    return _table(head, rows) + (
        f'<p class="soft">The highest goodput at a load of which {100 * attainment:g} % of the requests kept both '
        "limits, divided by the workers; failures are misses. Found among the loads tried, not between them.</p>"
    )


def cost_table(cells: Sequence[Measured]) -> str:
    """Mean and 99th percentile of each phase of a request, cache hits, balance and how busy each pool was."""
    if not any(each.series.estimate(figures.PHASES[0]) for each in cells):
        return ""
    head = "".join(f"<th>{escape(figure.title)}</th>" for figure in COSTS)
    extra = ("Balance of prompts", "Balance of output", "Prefill busy", "Decode busy")
    head += "".join(f"<th>{title}</th>" for title in extra)
    rows = [f"<tr><th>{escape(each.label)}</th>{_costs(each)}</tr>" for each in cells]
    return _table(f"<th>Cell</th>{head}", rows) + (
        '<p class="soft">What a request cost in each phase, by the server’s own account; decode as the client saw it. '
        "Transfer exposed: from the end of prefill until decode had the KV. Hits: of prompt tokens, as the router "
        "predicted, as the worker found, and as one endless cache would have. Balance: Jain’s index over the workers "
        "of the role. Busy: share of the workers with a sequence in their batch.</p>"
    )


def use_charts(cells: Sequence[Measured]) -> str:
    """How busy each pool was over time, of the first run of each cell that was looked at more than once."""
    made = []
    for each in cells:
        use = each.runs[0].use
        if use is None or len(use.at_s) < 3:
            continue
        roles = {"prefill": use.prefill, "decode": use.decode}
        lines = []
        for colour, (name, role) in enumerate(roles.items()):
            if role is not None:
                for what, values, dashed in (("busy", role.busy, False), ("KV in use", role.kv_used, True)):
                    points = [(at, 100 * value) for at, value in zip(use.at_s, values, strict=True)]
                    lines.append(Line(f"{name}, {what}", points, colour, dashed))
        chart = line_chart(each.label, lines, "seconds", "", log_x=False, percent=True)
        made.append(f'<figure class="card"><h3>{escape(each.label)}</h3>{chart}</figure>')
    if not made:
        return ""
    names = [(name, colour) for colour, name in enumerate(("prefill", "decode"))]
    shown_first, rest = "".join(made[:MAX_GROUPS]), made[MAX_GROUPS:]
    more = (
        f"<details><summary>{len(rest)} more</summary><div class=charts>{''.join(rest)}</div></details>" if rest else ""
    )
    caption = (
        '<p class="soft">Line: share of the workers that were computing. Dashed: share of their KV blocks in use.</p>'
    )
    return f'{legend(names)}<div class="charts">{shown_first}</div>{more}{caption}'


def distribution_charts(cells: Sequence[Measured]) -> str:
    """Distributions of latencies, a group for each load and length, folded up."""
    groups: dict[str, list[Measured]] = {}
    for each in cells:
        groups.setdefault(each.label.partition(", ")[2] or "all", []).append(each)
    made = []
    for name, mine in groups.items():
        for first in range(0, len(mine), COLOURS):
            inner = charts_of_distributions([each.series for each in mine[first : first + COLOURS]])
            made.append(f"<details><summary>{escape(name)}</summary>{inner}</details>")
    return "".join(made)


def _costs(cell: Measured) -> str:
    series = cell.series
    found = [_cell(series.estimate(figure), figure) for figure in COSTS]
    found += [_text(cell.balance(phase), "") for phase in ("prompt", "output")]
    uses = [run.use for run in cell.runs if run.use is not None]
    prefill = [use.prefill.mean_busy for use in uses if use.prefill is not None]
    decode = [use.decode.mean_busy for use in uses]
    found += [_text(sum(values) / len(values) if values else None, "%") for values in (prefill, decode)]
    return "".join(found)


def _cell(estimate: figures.Estimate | None, figure: Figure) -> str:
    text, _, sure = shown_estimate(estimate, figure.unit).partition(" [")
    return f"<td>{escape(text)}{f'<small>{escape(sure[:-1])}</small>' if sure else ''}</td>"


def _text(value: float | None, unit: str) -> str:
    return f"<td>{'–' if value is None else escape(shown(value, unit))}</td>"


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
