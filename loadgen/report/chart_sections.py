"""The charts of the report, in groups: over the offered rate, of distributions, over time, and maps of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from loadgen.report import figures
from loadgen.report.charts import LIMIT, Bar, Line, bar_chart, legend, line_chart
from loadgen.report.figures import Estimate, Figure, Series
from loadgen.report.heat_map import Cell, heat_map
from loadgen.report.intervals import Interval
from loadgen.report.sections import MEASURES
from loadgen.report.summary import QUANTILES

ENDS = "Line: ended, answered or failed. Dashed: sent."
FAR = 2.0  # times the largest value: a limit above that is not drawn


def charts_of_rates(series: Sequence[Series]) -> str:
    """Goodput, attainment and latencies over the offered rate, where at least three rates were measured under one
    name."""
    named: dict[str, list[Series]] = {}
    for each in series:
        named.setdefault(each.first.config.name or each.first.config.workload, []).append(each)
    groups = {
        name: [LoadPoint(_offered(each), each, each.estimate(figures.GOODPUT)) for each in sorted(group, key=_offered)]
        for name, group in named.items()
        if len(group) >= 3
    }
    limits = series[0].first.summary.goodput
    return curves(
        groups, Limits(limits.ttft_limit_ms, limits.tpot_limit_ms), "offered, requests/s", "requests/s in time"
    )


@dataclass(frozen=True, slots=True)
class Limits:
    ttft_ms: float
    tpot_ms: float
    attainment: float | None = None  # share of the requests to be within both


@dataclass(frozen=True, slots=True)
class LoadPoint:
    load: float
    series: Series
    goodput: Estimate | None


def curves(groups: Mapping[str, Sequence[LoadPoint]], limits: Limits, x_title: str, goodput_title: str) -> str:
    """Goodput, attainment and 99th percentiles over the load, a line for each group; whiskers are intervals, a dashed
    line the limit. Nothing without a group."""
    if not groups:
        return ""
    wanted = None if limits.attainment is None else 100 * limits.attainment
    ttft, tpot = figures.LATENCIES["ttft"][4], figures.LATENCIES["tpot"][4]
    made = [
        _over_load("Goodput", goodput_title, x_title, _lines(groups, lambda point: point.goodput), None),
        _over_load(
            "Attainment",
            "share of the requests in time",
            x_title,
            _lines(groups, _estimate_of(figures.ATTAINMENT), 100.0),
            wanted,
            percent=True,
        ),
    ]
    for figure, limit in ((ttft, limits.ttft_ms), (tpot, limits.tpot_ms)):
        lines = _lines(groups, _estimate_of(figure))
        made.append(_over_load(figure.title, f"{figure.title}, ms", x_title, lines, limit))
    names = [(name, colour) for colour, name in enumerate(groups)]
    note = (
        "Whiskers: 95 % interval; one without a cap goes on above the picture. A limit far above all that was measured "
        "is not drawn."
    )
    return legend(names, "limit") + _charts(made) + f'<p class="soft">{note}</p>'


def charts_of_goodput(series: Sequence[Series]) -> str:
    """Bars side by side, where there is more than one series."""
    if len(series) < 2:
        return ""
    limits = series[0].first.summary.goodput
    note = f"TTFT ≤ {limits.ttft_limit_ms:g} ms and TPOT ≤ {limits.tpot_limit_ms:g} ms"
    made = []
    for figure, factor, unit, about in (
        (figures.GOODPUT, 1.0, "/s", f"Requests a second with {note}. Whiskers: 95 % interval."),
        (figures.ATTAINMENT, 100.0, "%", f"Share of the requests with {note}. Whiskers: 95 % interval."),
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
        share = f"share of {'gaps' if measure == 'itl' else 'requests'} at or below"
        if chart := line_chart(title, lines, f"{measure.upper()}, ms", share, percent=True):
            made.append(_figure(title, chart, _which_run(series)))
    if not made:
        return ""
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
        _figure(
            "TTFT of requests sent then", _over_time("TTFT over time", ttft, "TTFT, ms"), "Line: p50. Dashed: p99."
        ),
        _figure("Requests in flight", _over_time("Requests in flight", flight, "requests"), "At the end of each slot."),
        _figure("Output tokens", _over_time("Output tokens over time", tokens, "tokens/s"), ""),
        _figure("Requests sent and ended", _over_time("Requests over time", sent, "requests/s"), ENDS),
    ]
    names = legend([(each.label, colour) for colour, each in enumerate(series)])
    return names + _charts(made) + f'<p class="soft">{_which_run(series) or "The run"}, warm-up and tail included.</p>'


def map_section(title: str, cells: Sequence[Cell], row_title: str, column_title: str, unit: str, note: str = "") -> str:
    """A heat map as a section of the report, e.g. goodput over prefill and decode workers. See `heat_map`."""
    return _charts([_figure(title, heat_map(title, cells, row_title, column_title, unit), note)])


def _offered(series: Series) -> float:
    found = series.estimate(figures.OFFERED)
    return found.value if found else 0.0


def _lines(
    groups: Mapping[str, Sequence[LoadPoint]], of: Callable[[LoadPoint], Estimate | None], factor: float = 1.0
) -> list[Line]:
    made = []
    for colour, (name, group) in enumerate(groups.items()):
        found = [of(point) for point in group]
        points = [(point.load, each.value * factor if each else None) for point, each in zip(group, found, strict=True)]
        sure = [each.interval if each else None for each in found]
        scaled = [Interval(each.low * factor, each.high * factor) if each else None for each in sure]
        made.append(Line(name, points, colour, intervals=scaled))
    return made


def _estimate_of(figure: Figure) -> Callable[[LoadPoint], Estimate | None]:
    return lambda point: point.series.estimate(figure)


def _over_load(
    title: str, y_title: str, x_title: str, lines: Sequence[Line], limit: float | None, *, percent: bool = False
) -> str:
    values = [(x, y) for line in lines for x, y in line.points if y is not None]
    drawn = list(lines)
    if limit is not None and values and limit <= FAR * max(y for _, y in values):
        drawn.append(Line("limit", [(0.0, limit), (max(x for x, _ in values), limit)], LIMIT, dashed=True))
    chart = line_chart(title, drawn, x_title, y_title, log_x=False, percent=percent, from_zero=True)
    return _figure(title, chart, "")


def _over_time(title: str, lines: Sequence[Line], unit: str) -> str:
    return line_chart(title, lines, "time since the start, s", unit, log_x=False)


def _which_run(series: Sequence[Series]) -> str:
    """Which of several repeats is drawn."""
    seeds = {each.first.config.seed for each in series}
    if all(len(each.results) == 1 for each in series):
        return ""
    return "The first run" + (f" (seed {seeds.pop()})" if len(seeds) == 1 else "") + " of each"


def _charts(made: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(made)}</div>'


def _figure(title: str, chart: str, note: str) -> str:
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f'<figure class="card"><h3>{escape(title)}</h3>{chart}{caption}</figure>' if chart else ""
