"""The sections of the report: each takes series and gives HTML, or nothing where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.report import figures
from loadgen.report.figures import Estimate, Figure, Series, bare, shown
from loadgen.report.result import UNKNOWN_IF_SIMULATED

MEASURES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2e": "End to end",
}
SHOWN = (
    *figures.COUNTS[:2],
    figures.GOODPUT,
    figures.ATTAINMENT,
    *(figures.LATENCIES[measure][index] for measure in MEASURES for index in (1, 4)),
    *figures.THROUGHPUT,
    figures.CACHE[0],
    figures.CACHE[2],
)
FEW = 4  # series that fit side by side


def verdict(series: Sequence[Series]) -> str:
    """First of all: may the figures be believed, and whose are they."""
    return _validity(series) + _simulated(series)


def _simulated(series: Sequence[Series]) -> str:
    """Nothing where every server said that a model computes."""
    found = {run.simulated for each in series for run in each.results}
    if True in found:
        which = "These" if found == {True} else "Some of these"
        return (
            f'<div class="card verdict"><strong>SIMULATED.</strong> {which} figures are a timing model’s, not '
            "measurements of a model that computes.</div>"
        )
    return f'<p class="soft">{escape(UNKNOWN_IF_SIMULATED.capitalize())}.</p>' if None in found else ""


def _validity(series: Sequence[Series]) -> str:
    doubts = [
        f"{each.label}, seed {run.config.seed}: {reason}"
        for each in series
        for run in each.results
        for reason in run.invalid_because
    ]
    if not doubts:
        lag = max(run.summary.generator.lag_p99_ms for each in series for run in each.results)
        return (
            '<div class="card verdict"><strong>Valid.</strong> The generator kept its schedule: 99 % of requests were '
            f"sent within {lag:.1f} ms of their time.</div>"
        )
    items = "".join(f"<li>{escape(doubt)}</li>" for doubt in doubts)
    return (
        '<div class="card verdict invalid"><strong>Invalid.</strong> Some of these figures say more about the '
        f"measuring side than about the server:<ul>{items}</ul></div>"
    )


def tiles(series: Series) -> str:
    shown_figures = (
        figures.GOODPUT,
        figures.ATTAINMENT,
        figures.LATENCIES["ttft"][1],
        figures.LATENCIES["ttft"][4],
        figures.LATENCIES["tpot"][1],
        figures.LATENCIES["tpot"][4],
        figures.THROUGHPUT[3],
        figures.COUNTS[1],
        figures.CACHE[0],
    )
    made = []
    for figure in shown_figures:
        estimate = series.estimate(figure)
        if estimate is not None:
            value, bounds = shown(estimate.value, figure.unit), _bounds(estimate, figure)
            made.append(
                f'<div class="card tile"><span>{escape(figure.title)}</span><b>{escape(value)}</b>'
                f"<span>{bounds}</span></div>"
            )
    return f'<div class="tiles">{"".join(made)}</div>'


def comparison(series: Sequence[Series]) -> str:
    """Every figure with its 95 % interval: figures in rows for a few series, in columns for many."""
    names = [escape(each.label + ("" if each.valid else " (invalid)")) for each in series]
    cells = [[_cell(each.estimate(figure), figure) for figure in SHOWN] for each in series]
    titles = [escape(figure.title) for figure in SHOWN]
    if len(series) <= FEW:
        names, titles, cells = titles, names, [list(column) for column in zip(*cells, strict=True)]
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = [f'<tr><th title="{name}">{name}</th>{"".join(row)}</tr>' for name, row in zip(names, cells, strict=True)]
    return _table(f"<th>{_runs(series)}</th>{head}", rows)


def failures_and_classes(series: Sequence[Series]) -> str:
    rows = []
    for each in series:
        for run in each.results:
            for kind, count in run.summary.failures.items():
                name = escape(f"{each.label}, seed {run.config.seed}")
                rows.append(f"<tr><th>{name}</th><td>{escape(kind)}</td><td>{count}</td></tr>")
    made = _table("<th>Run</th><th>Failure</th><th>Requests</th>", rows) if rows else ""
    classes = []
    for each in series:
        for label, found in each.first.summary.by_label.items():
            names = ("requests", "failed", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms", "attainment")
            cells = "".join(f"<td>{f'{found[name]:.4g}' if name in found else '–'}</td>" for name in names)
            classes.append(f"<tr><th>{escape(f'{each.label}: {label}')}</th>{cells}</tr>")
    titles = ("Class", "Requests", "Failed", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "Attainment")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return made + (f"<br>{_table(head, classes)}" if classes else "")


def configuration(series: Sequence[Series]) -> str:
    made = []
    for each in series:
        first = each.first
        content = {"config": first.config, "machine": first.machine, "generator": first.summary.generator}
        raw = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
        seeds = ", ".join(str(run.config.seed) for run in each.results)
        made.append(
            f"<details><summary>{escape(each.label)} (seeds {seeds})</summary><pre>{escape(raw)}</pre></details>"
        )
    return "".join(made)


def definitions(series: Sequence[Series]) -> str:
    tokens = all(run.summary.itl_basis == "tokens" for each in series for run in each.results)
    gaps = "between tokens" if tokens else "between events; where an event holds several tokens, they count as one"
    return (
        '<p class="soft">Latencies count from the time at which a request was to be sent, so waiting on the measuring '
        "side is in them. TTFT: to the first event with a token. E2E: to the last. TPOT = (E2E − TTFT) / (n − 1), one "
        f"value for each answer. ITL: gaps {gaps}. Latencies are those of answers that came whole; failed and refused "
        "requests are counted apart, and always miss the limits of goodput. Warm-up and tail are left out. Ranges are "
        "95 % confidence intervals: Student’s t over repeats, a block bootstrap inside a single run. Hits possible: "
        "what one cache without an end would save of these prompts.</p>"
    )


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(estimate: Estimate | None, figure: Figure) -> str:
    if estimate is None:
        return "<td>–</td>"
    bounds = _bounds(estimate, figure)
    return f"<td>{escape(shown(estimate.value, figure.unit))}{f'<small>{bounds}</small>' if bounds else ''}</td>"


def _bounds(estimate: Estimate, figure: Figure) -> str:
    if estimate.interval is None:
        return ""
    return escape(f"{bare(estimate.interval.low, figure.unit)} to {bare(estimate.interval.high, figure.unit)}")


def _runs(series: Sequence[Series]) -> str:
    counts = sorted({len(each.results) for each in series})
    return "Mean of " + "/".join(map(str, counts)) + " runs" if counts[-1] > 1 else "Run"
