"""A run in a terminal's width, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadgen.report import figures
from loadgen.report.figures import Figure, Series, shown_estimate
from loadgen.report.intervals import Interval
from loadgen.report.result import UNKNOWN_IF_SIMULATED

WIDTH = 14
TITLES = {"exposed": "… exposed"}  # below the transfer that it is a part of


def summary_text(series: Sequence[Series]) -> str:
    return "\n".join(line for each in series for line in (*_lines(each), ""))


def _lines(series: Series) -> Iterator[str]:
    first, count = series.first, len(series.results)
    goodput = first.summary.goodput
    means = "means of" if count > 1 else "of"
    yield f"{series.label}   ({means} {count} run{'s' * (count > 1)}, {first.summary.window_s:g} s; []: 95 % interval)"
    if any(result.simulated is None for result in series.results):
        yield f"  {UNKNOWN_IF_SIMULATED}"
    for result in series.results:
        for reason in result.invalid_because:
            yield f"  INVALID (seed {result.config.seed}): {reason}"
        for remark in result.remarks:
            yield f"  note (seed {result.config.seed}): {remark}"
    yield from _row(series, "requests", figures.COUNTS)
    yield from _row(series, "rates", figures.THROUGHPUT)
    yield from _row(
        series, "goodput", [figures.GOODPUT, figures.ATTAINMENT], f"   ({goodput.said}; failures are misses)"
    )
    yield f"  {'ms':<{WIDTH}}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p95", "p99"))
    for measure, parts in figures.LATENCIES.items():
        estimates = [series.estimate(part) for part in parts]
        cells = "".join(f"{'–' if each is None else f'{each.value:.1f}':>10}" for each in estimates)
        sure = estimates[-1].interval if estimates[-1] else None
        yield f"  {measure.upper():<{WIDTH}}{cells}" + (f"   p99 [{sure.low:.1f}, {sure.high:.1f}]" if sure else "")
    yield from _row(series, "prefix cache", figures.CACHE)
    yield from _phases(series)
    yield from _row(series, "generator", figures.GENERATOR)
    failures: dict[str, int] = {}
    for result in series.results:
        for kind, number in result.summary.failures.items():
            failures[kind] = failures.get(kind, 0) + number
    if failures:
        yield f"  {'failures':<{WIDTH}}" + ", ".join(f"{number} {kind}" for kind, number in failures.items())


def _phases(series: Series) -> Iterator[str]:
    """Nothing of a server that does not say what its phases cost."""
    if series.estimate(figures.PHASES[0]) is None:
        return
    yield f"  {'ms a request':<{WIDTH}}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p99"))
    for phase, title in figures.PHASE_TITLES.items():
        found = [series.estimate(figure) for figure in figures.COSTS[phase]]
        cells = "".join(f"{'–' if each is None else f'{each.value:.1f}':>10}" for each in found)
        sure = found[0].interval if found[0] else None
        yield f"  {TITLES.get(phase, title.lower()):<{WIDTH}}{cells}" + _mean_interval(sure)
    told = (figures.PHASES[0], *figures.BALANCES.values(), *figures.BUSY)
    yield from _row(series, "workers", [figure for figure in told if series.estimate(figure) is not None])


def _mean_interval(sure: Interval | None) -> str:
    return f"   mean [{sure.low:.1f}, {sure.high:.1f}]" if sure else ""


def _row(series: Series, title: str, parts: Sequence[Figure], behind: str = "") -> Iterator[str]:
    cells = [f"{part.title.lower()} {shown_estimate(series.estimate(part), part.unit)}" for part in parts]
    yield f"  {title:<{WIDTH}}" + "   ".join(cells) + behind
