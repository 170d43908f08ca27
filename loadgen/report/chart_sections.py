"""The charts of the report, in groups: over the offered rate, of distributions, over time, and maps of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from loadgen.report import figures
from loadgen.report.charts import Bar, Cell, Line, bar_chart, heat_map, legend, line_chart
from loadgen.report.figures import Figure, Series
from loadgen.report.intervals import Interval
from loadgen.report.sections import MEASURES
from loadgen.report.summary import QUANTILES


def charts_of_rates(series: Sequence[Series]) -> str:
    """Goodput and TTFT over the offered rate, where at least three rates were measured under one name."""
    named: dict[str, list[Series]] = {}
    for each in series:
        named.setdefault(each.first.config.name or each.first.config.workload, []).append(each)
    groups = {name: group for name, group in named.items() if len(group) >= 3}
    if not groups:
        return ""
    made = []
    for figure, unit in (
        (figures.GOODPUT, "requests/s"),
        (figures.ATTAINMENT, ""),
        (figures.LATENCIES["ttft"][4], "ms"),
        (figures.LATENCIES["tpot"][4], "ms"),
    ):
        lines = [Line(name, _over_rate(group, figure), colour) for colour, (name, group) in enumerate(groups.items())]
        percent = figure.unit == "%"
        chart = line_chart(figure.title, lines, "offered requests/s", unit, log_x=False, percent=percent)
        made.append(_figure(figure.title, chart, ""))
    return legend([(name, colour) for colour, name in enumerate(groups)]) + _charts(made)


def charts_of_goodput(series: Sequence[Series]) -> str:
    """Bars side by side, where there is more than one series."""
    if len(series) < 2:
        return ""
    limits = series[0].first.summary.goodput
    note = f"TTFT ≤ {limits.ttft_limit_ms:g} ms and TPOT ≤ {limits.tpot_limit_ms:g} ms"
    made = []
    for figure, factor, unit, about in (
        (figures.GOODPUT, 1.0, "/s", f"Requests a second with {note}. Whiskers: 95 % interval."),
        (figures.ATTAINMENT, 100.0, "%", f"Share of the requests with {note}."),
    ):
        bars = []
        for colour, each in enumerate(series):
            if (estimate := each.estimate(figure)) is not None:
                sure = estimate.interval
                scaled = Interval(sure.low * factor, sure.high * factor) if sure else None
                bars.append(Bar(each.label, estimate.value * factor, scaled, colour))
        made.append(_figure(figure.title, bar_chart(figure.title, bars, unit), about))
    return _charts(made)


def charts_of_distributions(series: Sequence[Series]) -> str:
    made = []
    for measure, title in MEASURES.items():
        lines = [
            Line(each.label, list(zip(found.quantiles, map(float, QUANTILES), strict=True)), colour)
            for colour, each in enumerate(series)
            if (found := each.first.summary.latencies.get(measure)) is not None
        ]
        if chart := line_chart(title, lines, "ms", "", percent=True):
            made.append(_figure(title, chart, f"Share of {'gaps' if measure == 'itl' else 'requests'} at or below."))
    return legend([(each.label, colour) for colour, each in enumerate(series)]) + _charts(made)


def charts_over_time(series: Sequence[Series]) -> str:
    """Of the first run of each series."""
    ttft, flight, tokens, sent = [], [], [], []
    for colour, each in enumerate(series):
        line = each.first.summary.timeline
        times = [round(index * line.slot_s, 3) for index in range(len(line.sent))]
        for name, values in (("p50", line.ttft_p50_ms), ("p99", line.ttft_p99_ms)):
            known = [(at, value) for at, value in zip(times, values, strict=True) if value is not None]
            ttft.append(Line(f"{each.label}, {name}", known, colour, dashed=name == "p99"))
        flight.append(Line(each.label, list(zip(times, map(float, line.in_flight), strict=True)), colour))
        rates = [count / line.slot_s for count in line.output_tokens]
        tokens.append(Line(each.label, list(zip(times, rates, strict=True)), colour))
        ends = [count / line.slot_s for count in line.ended]
        starts = [count / line.slot_s for count in line.sent]
        sent.append(Line(f"{each.label}, ended", list(zip(times, ends, strict=True)), colour))
        sent.append(Line(f"{each.label}, sent", list(zip(times, starts, strict=True)), colour, dashed=True))
    made = [
        _figure("TTFT of requests sent then", _over_time("TTFT over time", ttft, "ms"), "Line: p50. Dashed: p99."),
        _figure("Requests in flight", _over_time("Requests in flight", flight, ""), ""),
        _figure("Output tokens a second", _over_time("Output tokens a second", tokens, ""), ""),
        _figure("Requests a second", _over_time("Requests a second", sent, ""), "Line: ended. Dashed: sent."),
    ]
    return legend([(each.label, colour) for colour, each in enumerate(series)]) + _charts(made)


def map_section(title: str, cells: Sequence[Cell], row_title: str, column_title: str, note: str = "") -> str:
    """A heat map as a section of the report, e.g. goodput over prefill and decode workers. See `heat_map`."""
    return _charts([_figure(title, heat_map(title, cells, row_title, column_title), note)])


def _over_rate(group: Sequence[Series], figure: Figure) -> list[tuple[float, float | None]]:
    factor = 100.0 if figure.unit == "%" else 1.0
    points: list[tuple[float, float | None]] = []
    for each in group:
        rate, value = each.estimate(figures.OFFERED), each.estimate(figure)
        if rate is not None:
            points.append((rate.value, None if value is None else value.value * factor))
    return sorted(points, key=lambda point: point[0])


def _over_time(title: str, lines: Sequence[Line], unit: str) -> str:
    return line_chart(title, lines, "seconds", unit, log_x=False)


def _charts(made: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(made)}</div>'


def _figure(title: str, chart: str, note: str) -> str:
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f'<figure class="card"><h3>{escape(title)}</h3>{chart}{caption}</figure>' if chart else ""
