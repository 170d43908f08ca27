"""The report: one HTML page that holds everything it shows, without a script and without loading anything."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadgen.report.chart_sections import (
    charts_of_distributions,
    charts_of_goodput,
    charts_of_rates,
    charts_over_time,
)
from loadgen.report.figures import Series
from loadgen.report.phase_sections import phase_costs, phases_over_time
from loadgen.report.sections import (
    comparison,
    configuration,
    definitions,
    failures_and_classes,
    latencies,
    tiles,
    verdict,
)
from loadgen.report.style import CSS

FEW_NAMES = 2  # that a title can hold
NO_BREAK = "\N{NO-BREAK SPACE}"  # a percent sign stays with its number


def report_page(series: Sequence[Series], title: str = "", more: Sequence[tuple[str, str]] = ()) -> str:
    """
    Args:
        more: further sections, (heading, HTML), e.g. a heat map of a sweep; shown before the charts.

    Raises:
        ValueError: there is no series.
    """
    if not series:
        raise ValueError("nothing to report: no run was given")
    title = title or (
        " · ".join(each.label for each in series) if len(series) <= FEW_NAMES else f"{len(series)} configurations"
    )
    sections = [
        ("", verdict(series)),
        ("", tiles(series[0]) if len(series) == 1 else ""),
        ("Figures", comparison(series)),
        ("", charts_of_goodput(series)),
        *more,
        ("Latencies", latencies(series)),
        ("Over the rate", charts_of_rates(series)),
        ("What each phase costs", phase_costs(series)),
        ("How full each phase was", phases_over_time(series)),
        ("Distributions", charts_of_distributions(series)),
        ("Over time", charts_over_time(series)),
        ("Failures and classes of traffic", failures_and_classes(series)),
        ("What was run", configuration(series)),
        ("How to read this", definitions(series)),
    ]
    return page_of(title, _subtitle(series), sections)


def page_of(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page of (heading, HTML) sections; those without HTML are left out.

    Args:
        subtitle: HTML.
    """
    body = "".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{html}</section>"
        for heading, html in sections
        if html
    )
    body = body.replace(" %", f"{NO_BREAK}%")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{subtitle}{body}</main></body></html>\n"
    )


def _subtitle(series: Sequence[Series]) -> str:
    runs = [result for each in series for result in each.results]
    when = sorted(run.started_at for run in runs)
    span = _time(when[0]) if when[0] == when[-1] else f"{_time(when[0])} to {_time(when[-1])}"
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    limits = runs[0].summary.goodput
    text = f"Load test, {count}, {span}, against {runs[0].config.base_url}. Limits of goodput: {limits.said}"
    return f'<p class="soft">{escape(text)}</p>'


def _time(iso: str) -> str:
    """`2025-01-31 12:00 UTC` of what a run's file says."""
    return iso[:16].replace("T", " ") + " UTC"
