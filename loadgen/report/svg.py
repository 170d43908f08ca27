"""The parts of a chart: scales, ticks and axes, as SVG text. Colours are CSS variables of the page, so one picture
serves light and dark. Knows nothing about what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 250  # of a chart, in its own units: near a phone's pixels, so that text is legible there
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 28, 40


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places along an axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, self.low)), math.log10(low), math.log10(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def x_scale(values: Sequence[float], log: bool = False, from_zero: bool = False) -> Scale:
    return _scale(values, LEFT, WIDTH - RIGHT, log, from_zero)


def y_scale(values: Sequence[float], log: bool = False) -> Scale:
    """From zero, unless it is logarithmic."""
    return _scale(values, HEIGHT - BOTTOM, TOP, log, from_zero=True)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    return [made for decade in decades for factor in factors if low <= (made := factor * 10.0**decade) <= high]


def number(value: float) -> str:
    """As an axis shows it."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if limit > 1e4 else 1e3):g}{suffix}"
    return f"{value:g}"


def digits(value: float) -> str:
    """Three digits that mean something, or whole thousands."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def axes(x: Scale, y: Scale, x_title: str, y_title: str, y_text: Callable[[float], str] = number) -> str:
    """Grid lines, numbers and titles of both axes; a title says what and in which unit."""
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(text(LEFT - 6, at + 4, y_text(value), "end"))
    parts += [text(x(value), HEIGHT - BOTTOM + 16, number(value), "middle") for value in x.ticks()]
    parts.append(baseline())
    parts.append(text(WIDTH - RIGHT, HEIGHT - 5, f"{x_title}, logarithmic" if x.log else x_title, "end", "x-title"))
    parts.append(text(4, 11, y_title, "start", "y-title"))
    return "".join(parts)


def baseline() -> str:
    at = HEIGHT - BOTTOM
    return f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'


def text(x: float, y: float, content: str, anchor: str, css: str = "") -> str:
    made = f' class="{css}"' if css else ""
    return f'<text{made} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(content)}</text>'


def picture(parts: Iterable[str], title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """
    Args:
        title: what a screen reader says.
    """
    label = escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _scale(values: Sequence[float], start: float, end: float, log: bool, from_zero: bool) -> Scale:
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        return Scale(low, high if high > low else low * 10, start, end, log=True)
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(0.0, low) if from_zero else low
    if high - low <= 1e-9 * max(1.0, abs(low)):
        high = low + 1  # all the same
    step = ticks(low, high)
    spacing = step[1] - step[0] if len(step) > 1 else 1.0
    return Scale(low, math.ceil(high / spacing - 1e-9) * spacing if from_zero else high, start, end)
