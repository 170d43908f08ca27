"""Sections on what each phase of a request cost and how full it was. Nothing of servers that do not say so."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadgen.report import figures
from loadgen.report.charts import Line, Stack, legend, line_chart, stacked_chart
from loadgen.report.figures import COSTS, PHASE_TITLES, Figure, Series
from loadgen.report.sections import cell, table
from loadgen.report.summary import Timeline

BAR_TITLES = {  # one after the other in a request's life
    "queue": "Queue",
    "prefill": "Prefill",
    "exposed": "Transfer exposed",
    "decode": "Decode",
    "other": "Router, waiting for a step, network",
}
COLOURS = {name: colour for colour, name in enumerate(BAR_TITLES)}
OF_TIME = {"queue": "queue", "prefill": "prefill", "transfer": "exposed", "decode": "decode"}
MAX_STACKS = 24  # bars of one chart; more are in the table
SHOWN_OVER_TIME = 4  # series whose charts are not folded up


def phase_costs(series: Sequence[Series], with_queue: bool = True) -> str:
    """
    Args:
        with_queue: false where the time in the queue is not told apart from prefill.
    """
    told = [each for each in series if each.estimate(figures.PHASES[0])]
    if not told:
        return ""
    return phase_chart(told, with_queue) + phase_table(told, with_queue) + _explained(with_queue)


def phase_chart(series: Sequence[Series], with_queue: bool = True) -> str:
    """Of each series the mean time of its requests in each phase, end to end."""
    stacks = []
    for each in series[:MAX_STACKS]:
        parts = _parts(each)
        shown = {name: parts[name] for name in BAR_TITLES if name in parts and (with_queue or name != "queue")}
        stacks.append(Stack(each.label, [(BAR_TITLES[name], value, COLOURS[name]) for name, value in shown.items()]))
    title = "Mean time of a request in each phase"
    chart = stacked_chart(title, stacks, "ms")
    names = [name for name in BAR_TITLES if with_queue or name != "queue"]
    names_shown = legend([(BAR_TITLES[name], COLOURS[name]) for name in names])
    rest = f"<figcaption>The first {MAX_STACKS} of {len(series)}.</figcaption>" if len(series) > MAX_STACKS else ""
    return f'<figure class="card"><h3>{title}</h3>{names_shown}{chart}{rest}</figure>'


def phase_table(series: Sequence[Series], with_queue: bool = True) -> str:
    """A row for each series; of a single one, a row for each phase."""
    names = [name for name in PHASE_TITLES if with_queue or name != "queue"]
    if len(series) == 1:
        rows = [_row(PHASE_TITLES[name], series[0], COSTS[name]) for name in names]
        return table("<th>Phase</th><th>mean</th><th>p50</th><th>p99</th>", rows)
    shown = [figure for name in names for figure in COSTS[name] if not figure.key.endswith("p50_ms")]
    head = "".join(f"<th>{escape(figure.title)}</th>" for figure in shown)
    return table(f"<th>Configuration</th>{head}", [_row(each.label, each, shown) for each in series])


def phases_over_time(series: Sequence[Series]) -> str:
    """Requests in each phase and workers busy with it, of the first run of each series."""
    told = [each for each in series if each.first.summary.timeline.in_phase]
    made = ["".join(_over_time(each, len(series) > 1)) for each in told]
    if not made:
        return ""
    titles = [(phase, COLOURS[OF_TIME[phase]]) for phase in OF_TIME]
    first = f'<div class="charts">{"".join(made[:SHOWN_OVER_TIME])}</div>'
    rest = made[SHOWN_OVER_TIME:]
    more = (
        f'<details><summary>{len(rest)} more</summary><div class="charts">{"".join(rest)}</div></details>'
        if rest
        else ""
    )
    return (
        f"{legend(titles)}{first}{more}"
        '<p class="soft">From what answered requests report, mean over each slot of time. A worker is busy with a '
        "phase while it has a request in it; one that does both can be counted twice.</p>"
    )


def _over_time(series: Series, named: bool) -> list[str]:
    line = series.first.summary.timeline
    name = f"{series.label}: " if named else ""
    return [
        _chart(f"{name}requests in each phase", line, line.in_phase, "requests"),
        _chart(f"{name}busy workers", line, line.busy_workers, "workers"),
    ]


def _chart(title: str, line: Timeline, of: dict[str, list[float]], unit: str) -> str:
    title = title[0].upper() + title[1:]
    lines = [
        Line(
            phase,
            [(round(index * line.slot_s, 3), value) for index, value in enumerate(values)],
            COLOURS[OF_TIME[phase]],
        )
        for phase, values in of.items()
    ]
    chart = line_chart(title, lines, "time since the start, s", unit, log_x=False)
    return f'<figure class="card"><h3>{escape(title)}</h3>{chart}</figure>' if chart else ""


def _parts(series: Series) -> dict[str, float]:
    """Mean milliseconds of a request, parts that sum up to its end-to-end time."""
    found = {name: estimate.value for name, of in COSTS.items() if (estimate := series.estimate(of[0]))}
    remote, e2e = series.estimate(figures.PHASES[0]), series.estimate(figures.LATENCIES["e2e"][0])
    exposed = found.get("exposed", 0.0) * (remote.value if remote else 0.0)  # its mean is over remote ones only
    decode = max(
        0.0, found["decode"] - exposed
    )  # the client saw it from the first token on, which comes before KV does
    parts = {"queue": found["queue"], "prefill": found["prefill"], "exposed": exposed, "decode": decode}
    return parts | {"other": max(0.0, e2e.value - sum(parts.values()))} if e2e else parts


def _row(name: str, series: Series, of: Sequence[Figure]) -> str:
    cells = "".join(cell(series.estimate(figure), figure) for figure in of)
    return f"<tr><th>{escape(name)}</th>{cells}</tr>"


def _explained(with_queue: bool) -> str:
    queue = "Queue: in the worker’s scheduler" if with_queue else "Prefill has the time in the queue in it"
    return (
        '<p class="soft">What a request cost in each phase, by the server’s own account; decode as the client saw it, '
        f"from the first token to the last. {queue}. Transfer: from the first write to delivery, most of it while "
        "prefill goes on; transfer exposed: what of it came after prefill’s end and was waited for. Both are over the "
        "requests that were prefilled remotely; the bars spread what was exposed over all, and take it out of "
        "decode.</p>"
    )
