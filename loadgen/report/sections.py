"""The sections of the report: each takes series and gives HTML, or nothing where there is nothing to show."""

from __future__ import annotations

from collections import Counter
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
RATES = (*figures.COUNTS, figures.GOODPUT, figures.ATTAINMENT, *figures.THROUGHPUT)
CACHES = (*figures.CACHE, *figures.BALANCES.values(), *figures.BUSY, figures.PHASES[0])
LATENCY_TITLES = ("mean", "p50", "p90", "p95", "p99")
OF_CLASSES = (
    ("requests", "Requests", ""),
    ("failed", "Failed", ""),
    ("ttft_p50_ms", "TTFT p50", "ms"),
    ("ttft_p99_ms", "TTFT p99", "ms"),
    ("tpot_p50_ms", "TPOT p50", "ms"),
    ("tpot_p99_ms", "TPOT p99", "ms"),
    ("attainment", "Attainment", "%"),
    ("goodput_per_s", "Goodput", "1/s"),
)
FEW = 4  # series that fit side by side


def verdict(series: Sequence[Series]) -> str:
    """First of all: may the figures be believed, whose are they, and what has to be known of them."""
    return _validity(series) + _simulated(series) + _remarks(series)


def _remarks(series: Sequence[Series]) -> str:
    remarks = [
        f"{each.label}, seed {run.config.seed}: {remark}"
        for each in series
        for run in each.results
        for remark in run.remarks
    ]
    return "".join(f'<p class="soft">{escape(remark)}.</p>' for remark in remarks)


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


def comparison(series: Sequence[Series], which: Sequence[Figure] = (*RATES, *CACHES)) -> str:
    """Figures with their 95 % intervals: figures in rows for a few series, in columns for many. What no series has is
    left out."""
    known = [figure for figure in which if any(each.estimate(figure) for each in series)]
    names = [escape(each.label + ("" if each.valid else " (invalid)")) for each in series]
    cells = [[cell(each.estimate(figure), figure) for figure in known] for each in series]
    titles = [escape(figure.title) for figure in known]
    if len(series) <= FEW:
        names, titles, cells = titles, names, [list(column) for column in zip(*cells, strict=True)]
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = [f"<tr><th>{name}</th>{''.join(row)}</tr>" for name, row in zip(names, cells, strict=True)]
    return table(f"<th>{_runs(series)}</th>{head}", rows)


def latencies(series: Sequence[Series]) -> str:
    """Mean and percentiles of every latency: one table for one series, else one for each latency, the first open."""
    parts = {
        name: [(each, figures.LATENCIES[name]) for each in series if each.estimate(figures.LATENCIES[name][0])]
        for name in MEASURES
    }
    head = "".join(f"<th>{title}</th>" for title in LATENCY_TITLES)
    if len(series) == 1:
        rows = [_latency_row(f"{MEASURES[name]} ({name.upper()})", *mine[0]) for name, mine in parts.items() if mine]
        return table(f"<th>{_runs(series)}</th>{head}", rows) if rows else ""
    made: list[str] = []
    for name, mine in parts.items():
        if mine:
            rows = [_latency_row(each.label, each, of) for each, of in mine]
            inner = table(f"<th>{name.upper()}</th>{head}", rows)
            opened = "" if made else " open"
            made.append(f"<details{opened}><summary>{MEASURES[name]} ({name.upper()})</summary>{inner}</details>")
    return "".join(made)


def _latency_row(name: str, series: Series, of: Sequence[Figure]) -> str:
    cells = "".join(cell(series.estimate(figure), figure) for figure in of)
    return f"<tr><th>{escape(name)}</th>{cells}</tr>"


def failures_and_classes(series: Sequence[Series]) -> str:
    """Of each series what failed, over all its runs, and the classes of its first run."""
    rows = []
    for each in series:
        measured = sum(run.summary.measured for run in each.results)
        kinds: Counter[str] = Counter()
        for run in each.results:
            kinds.update(run.summary.failures)
        for kind, count in kinds.most_common():
            share = shown(count / measured, "%")
            rows.append(
                f"<tr><th>{escape(each.label)}</th><td>{escape(kind)}</td><td>{count}</td><td>{share}</td></tr>"
            )
    made = (
        table("<th>Configuration</th><th>Failure</th><th>Requests</th><th>of all measured</th>", rows) if rows else ""
    )
    classes = []
    for each in series:
        for label, found in each.first.summary.by_label.items():
            cells = "".join(
                f"<td>{escape(shown(found[name], unit)) if name in found else '–'}</td>" for name, _, unit in OF_CLASSES
            )
            classes.append(f"<tr><th>{escape(f'{each.label}: {label}')}</th>{cells}</tr>")
    head = "<th>Class</th>" + "".join(f"<th>{title}</th>" for _, title, _ in OF_CLASSES)
    return made + (table(head, classes) if classes else "") or "<p>No measured request failed.</p>"


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
    counted = all(run.summary.tpot_basis == "tokens" for each in series for run in each.results)
    pieces = "" if counted else ", n being events where the server does not count tokens"
    gaps = "between tokens" if tokens else "between events; where an event holds several tokens, they count as one"
    return (
        '<p class="soft">Latencies count from the time at which a request was to be sent, so waiting on the measuring '
        "side is in them. TTFT: to the first event with a token. E2E: to the last. TPOT = (E2E − TTFT) / (n − 1), one "
        f"value for each answer{pieces}. ITL: gaps {gaps}. Latencies are those of answers that came whole; failed and "
        "refused requests are counted apart, and always miss the limits of goodput; so do answers shorter than they "
        "had to be. One that came in one piece has no TPOT: its TTFT decides. Warm-up and tail are left out. p99: "
        "99 % are at or below it. Goodput: requests a second that were within both limits, in an open loop of those "
        "due in the measured time, in a closed loop of those that ended in it; attainment: their share of all. "
        "Ranges in small print and whiskers are 95 % confidence intervals: Student’s t over repeats, a block bootstrap "
        "inside a single run. Cache hits: share of prompt tokens that were in a cache; predicted: as the router "
        "expected; possible: with one cache without an end. Balance: Jain’s index over the workers of a role, 1 if all "
        "did as much, 1/n if one of n did everything. Workers in prefill, in decode: how many had a request in that "
        "phase, mean over the run.</p>"
    )


def table(head: str, rows: Sequence[str]) -> str:
    """In a box that scrolls by itself, reached by keyboard too."""
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="card scroll" tabindex="0"><table>{inner}</table></div>'


def cell(estimate: Estimate | None, figure: Figure) -> str:
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
