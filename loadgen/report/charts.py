"""Charts as SVG: lines, and bars with intervals or of parts. They take numbers and names and know nothing of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadgen.report.intervals import Interval
from loadgen.report.svg import BOTTOM, HEIGHT, TOP, WIDTH, Scale, axes, digits, number, picture, text, x_scale, y_scale

COLOURS = 6  # of the page's palette; a seventh series looks like the first again
MARKED = 12  # a line of no more points shows them
MAX_NAME = 46  # letters above a bar: what fits on a phone
WHISKER_ROOM = 1.6  # times the largest value: with two repeats an interval can be tenfold
LIMIT = -1  # as a colour: a line that is no measurement
LOG_FROM = 30.0  # a span as wide as this is drawn on a logarithmic axis


@dataclass(frozen=True, slots=True)
class Line:
    """`points` are (x, y); a y of None breaks the line. `dashed` tells two lines of one colour apart. `intervals` are
    drawn as whiskers: one for each point, or none at all."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int  # or LIMIT
    dashed: bool = False
    intervals: Sequence[Interval | None] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    interval: Interval | None
    colour: int


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar of parts, end to end: (name, value, colour) each."""

    name: str
    parts: Sequence[tuple[str, float, int]]


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    *,
    log_x: bool | None = None,
    percent: bool = False,
    from_zero: bool = False,
) -> str:
    """Nothing without a point.

    Args:
        lines: whiskers that are far longer than what they belong to are cut off, at the edge.
        x_title, y_title: what is shown along the axis, and its unit.
        log_x: None takes a logarithmic axis if the values span a factor of `LOG_FROM`.
        percent: y is from 0 to 100.
        from_zero: the x axis begins at zero, unless it is logarithmic.
    """
    xs = [x for line in lines for x, y in line.points if y is not None]
    ys = [y for line in lines for _, y in line.points if y is not None]
    if not xs:
        return ""
    ends = [each.high for line in lines for each in line.intervals if each is not None]
    ys.append(min(max(ends, default=0.0), WHISKER_ROOM * max(ys)))
    positive = [x for x in xs if x > 0]
    wide = bool(positive) and max(positive) / min(positive) >= LOG_FROM
    x = x_scale(xs, log=wide if log_x is None else log_x, from_zero=from_zero)
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
        parts.append(text(4, top + 14, _short(bar.name, MAX_NAME), "start", "name"))
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
        parts.append(text(end + 6, top + 29, f"{digits(bar.value)} {unit}", "start", "value"))
    return picture(parts, title, WIDTH, height)


def stacked_chart(title: str, stacks: Sequence[Stack], unit: str) -> str:
    """Horizontal bars, one below the other; behind each the sum of its parts."""
    row = 38
    highest = max((sum(value for _, value, _ in stack.parts) for stack in stacks), default=0.0)
    x = Scale(0, highest or 1.0, 4, WIDTH - 76)
    made = []
    for index, stack in enumerate(stacks):
        top, begun = index * row, 0.0
        made.append(text(4, top + 14, _short(stack.name, MAX_NAME), "start", "name"))
        for name, value, colour in stack.parts:
            said = f"{stack.name}: {name} {value:.4g} {unit}"
            start, end = x(begun), x(begun + value)
            made.append(
                f'<rect class="fill c{colour % COLOURS}" x="{start:g}" y="{top + 19}" width="{end - start:g}" '
                f'height="12"><title>{escape(said)}</title></rect>'
            )
            begun += value
        made.append(text(x(begun) + 6, top + 29, f"{digits(begun)} {unit}", "start", "value"))
    return picture(made, title, WIDTH, row * len(stacks) + 8)


def legend(names: Sequence[tuple[str, int]], limit: str = "") -> str:
    """(name, colour) of each series, and what a dashed line is; nothing for a single one, which the title names."""
    items = [f'<li><i class="c{colour % COLOURS}"></i>{escape(name)}</li>' for name, colour in names]
    items = items if len(items) > 1 else []
    items += [f'<li><i class="limit dashed"></i>{escape(limit)}</li>'] if limit else []
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _line(line: Line, x: Scale, y: Scale, x_title: str, y_title: str) -> str:
    path, pen = [], "M"
    for at, value in line.points:
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{x(at):g} {y(value):g}")
        pen = "L"
    hue = "limit" if line.colour == LIMIT else f"c{line.colour % COLOURS}"
    css = f"line {hue}{' dashed' if line.dashed else ''}"
    made = f'<path class="{css}" d="{"".join(path)}"><title>{escape(line.name)}</title></path>'
    if line.colour == LIMIT:
        return made
    marked = " marked" if len(line.points) <= MARKED else ""  # the points of others are seen when pointed at
    sure = line.intervals or [None] * len(line.points)
    for (at, value), interval in zip(line.points, sure, strict=True):
        if value is not None:
            said = f"{line.name}: {x_title} {at:.4g}, {y_title} {value:.4g}"
            if interval is not None:
                said += f", 95 % interval {interval.low:.4g} to {interval.high:.4g}"
                made += f'<path class="whisker of {hue}" d="{_whisker(x(at), y, interval)}"/>'
            made += f'<circle class="dot{marked} {hue}" cx="{x(at):g}" cy="{y(value):g}" r="4">'
            made += f"<title>{escape(said)}</title></circle>"
    return made


def _whisker(x: float, y: Scale, interval: Interval) -> str:
    """Without a cap where it leaves the picture."""
    low, high = y(interval.low), y(interval.high)
    cap = f"M{x - 3:g} {high:g}h6" if interval.high <= y.high else ""
    return f"M{x:g} {low:g}V{high:g}M{x - 3:g} {low:g}h6{cap}"


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
