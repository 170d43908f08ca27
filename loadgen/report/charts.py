"""Charts as SVG: lines, bars with intervals, and a heat map. They take numbers and names and know nothing of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadgen.report.intervals import Interval
from loadgen.report.svg import BOTTOM, HEIGHT, TOP, WIDTH, Scale, axes, number, picture, text, x_scale, y_scale

COLOURS = 6  # of the page's palette; a seventh series looks like the first again
MARKED = 12  # a line of no more points shows them
LOG_FROM = 30.0  # a span as wide as this is drawn on a logarithmic axis


@dataclass(frozen=True, slots=True)
class Line:
    """`points` are (x, y); a y of None breaks the line. `dashed` tells two lines of one colour apart."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    interval: Interval | None
    colour: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of a map, e.g. so many prefill workers (row) and so many decode workers (column)."""

    row: str
    column: str
    value: float | None  # None: not measured, or not valid
    detail: str = ""  # shown when pointed at


def line_chart(
    title: str, lines: Sequence[Line], x_title: str, y_title: str, *, log_x: bool | None = None, percent: bool = False
) -> str:
    """`log_x` of None takes a logarithmic axis if the values span a factor of `LOG_FROM`."""
    xs = [x for line in lines for x, y in line.points if y is not None]
    ys = [y for line in lines for _, y in line.points if y is not None]
    if not xs:
        return ""
    positive = [x for x in xs if x > 0]
    wide = bool(positive) and max(positive) / min(positive) >= LOG_FROM
    x = x_scale(xs, log=wide if log_x is None else log_x)
    y = Scale(0, 100, HEIGHT - BOTTOM, TOP) if percent else y_scale(ys)
    parts = [axes(x, y, x_title, y_title, (lambda value: f"{value:g} %") if percent else number)]
    parts += [_line(line, x, y, x_title, y_title) for line in lines]
    return picture(parts, title)


def bar_chart(title: str, bars: Sequence[Bar], unit: str) -> str:
    """Horizontal, one below the other, so that long names have room. Whiskers are intervals."""
    row, height = 38, 38 * len(bars) + 8
    highest = max((max(bar.value, bar.interval.high if bar.interval else 0.0) for bar in bars), default=0.0)
    x = Scale(0, highest or 1.0, 4, WIDTH - 76)
    parts = []
    for index, bar in enumerate(bars):
        top = index * row
        width = max(1.0, x(bar.value) - 4)
        said = f"{bar.name}: {bar.value:.4g} {unit}" + (
            f", 95 % interval {bar.interval.low:.4g} to {bar.interval.high:.4g}" if bar.interval else ""
        )
        parts.append(text(4, top + 14, _short(bar.name, 54), "start", "name"))
        parts.append(
            f'<rect class="fill c{bar.colour % COLOURS}" x="4" y="{top + 19}" width="{width:g}" height="12" rx="3">'
            f"<title>{escape(said)}</title></rect>"
        )
        end = x(bar.value)
        if bar.interval is not None:
            low, high = x(bar.interval.low), x(bar.interval.high)
            parts.append(
                f'<path class="whisker" d="M{low:g} {top + 25}H{high:g}M{low:g} {top + 21}v8M{high:g} {top + 21}v8"/>'
            )
            end = max(end, high)
        parts.append(text(end + 6, top + 29, f"{bar.value:.3g} {unit}", "start", "value"))
    return picture(parts, title, WIDTH, height)


def heat_map(
    title: str, cells: Sequence[Cell], row_title: str, column_title: str, *, larger_is_better: bool = True
) -> str:
    """One square a cell, darker (lighter on a dark page) for more, the best one framed. Cells without a value are
    hollow. Rows and columns are in the order in which they first appear."""
    rows, columns = list(dict.fromkeys(c.row for c in cells)), list(dict.fromkeys(c.column for c in cells))
    known = [cell.value for cell in cells if cell.value is not None]
    best = (max(known) if larger_is_better else min(known)) if known else None
    low, high = min(known, default=0.0), max(known, default=1.0)
    left, top = 56, 34
    side = min(72.0, (WIDTH - left - 6) / max(1, len(columns)))
    tall = min(side, 46.0)
    parts = [text(left, 12, column_title, "start", "name"), text(4, top - 8, row_title, "start", "name")]
    parts += [text(left + (i + 0.5) * side, top - 8, name, "middle") for i, name in enumerate(columns)]
    parts += [text(left - 8, top + (i + 0.5) * tall + 4, name, "end") for i, name in enumerate(rows)]
    ordered = sorted(cells, key=lambda cell: cell.value is not None and cell.value == best)  # the frame on top
    for cell in ordered:
        at = (left + columns.index(cell.column) * side, top + rows.index(cell.row) * tall)
        share = 1.0 if cell.value is None or high <= low else (cell.value - low) / (high - low)
        parts.append(_cell(cell, at, side, tall, share, cell.value is not None and cell.value == best))
    return picture(parts, title, max(WIDTH * 0.6, left + side * len(columns) + 6), top + tall * len(rows) + 8)


def legend(names: Sequence[tuple[str, int]]) -> str:
    """(name, colour) of each series; nothing for a single one, which the chart's title names."""
    if len(names) < 2:
        return ""
    items = "".join(f'<li><i class="c{colour % COLOURS}"></i>{escape(name)}</li>' for name, colour in names)
    return f'<ul class="legend">{items}</ul>'


def _cell(cell: Cell, at: tuple[float, float], side: float, tall: float, share: float, is_best: bool) -> str:
    x, y = at
    shown = "–" if cell.value is None else f"{cell.value:.3g}"
    said = (
        f"{cell.row}, {cell.column}: {shown}{'. ' + cell.detail if cell.detail else ''}{' (best)' if is_best else ''}"
    )
    css = "cell none" if cell.value is None else "cell best" if is_best else "cell"
    ink = "on" if cell.value is not None and share > 0.5 else ""
    return (
        f'<g><title>{escape(said)}</title><rect class="{css}" style="--share:{12 + 88 * share:.0f}%" x="{x + 1:g}" '
        f'y="{y + 1:g}" width="{side - 2:g}" height="{tall - 2:g}" rx="4"/>'
        f"{text(x + side / 2, y + tall / 2 + 4, shown, 'middle', ink)}</g>"
    )


def _line(line: Line, x: Scale, y: Scale, x_title: str, y_title: str) -> str:
    path, pen = [], "M"
    for at, value in line.points:
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{x(at):g} {y(value):g}")
        pen = "L"
    css = f"line c{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
    made = f'<path class="{css}" d="{"".join(path)}"><title>{escape(line.name)}</title></path>'
    marked = " marked" if len(line.points) <= MARKED else ""  # the points of others are seen when pointed at
    for at, value in line.points:
        if value is not None:
            said = f"{line.name}: {x_title} {at:.4g}, {y_title} {value:.4g}"
            made += f'<circle class="dot{marked} c{line.colour % COLOURS}" cx="{x(at):g}" cy="{y(value):g}" r="4">'
            made += f"<title>{escape(said)}</title></circle>"
    return made


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
