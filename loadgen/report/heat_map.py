"""A heat map as SVG, e.g. of goodput over prefill and decode workers. Takes numbers and names, knows nothing of runs.

Text is drawn in the page's ink on every shade: the deepest is `DEEPEST` of the heat colour, on which the ink of both
colour schemes has the contrast that WCAG 2.2 asks of text (1.4.3, AA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadgen.report.intervals import Interval
from loadgen.report.svg import WIDTH, picture, text

FAINTEST, DEEPEST = 6, 54  # percent of the heat colour in a shade
STEPS = 6  # of the key
LEFT, TOP, TALL = 62, 40, 52.0
WIDEST, ROOM_FOR_BOUNDS = 86.0, 66.0  # of a cell
LINE = 15.0  # from one line of text to the next


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of a map, e.g. so many prefill workers (row) and so many decode workers (column)."""

    row: str
    column: str
    value: float | None  # None: not measured, or not valid
    detail: str = ""  # shown when pointed at
    interval: Interval | None = None


def heat_map(
    title: str, cells: Sequence[Cell], row_title: str, column_title: str, unit: str, *, larger_is_better: bool = True
) -> str:
    """One square a cell, deeper for more, the best one framed and named; below it the key of the shades. Cells without
    a value are hollow, and where all are 0 nobody is best. Rows and columns are in the order in which they first
    appear."""
    rows, columns = list(dict.fromkeys(c.row for c in cells)), list(dict.fromkeys(c.column for c in cells))
    known = [cell.value for cell in cells if cell.value is not None]
    best = (max(known) if larger_is_better else min(known)) if any(known) else None
    low, high = min(known, default=0.0), max(known, default=1.0)
    side = min(WIDEST, (WIDTH - LEFT - 6) / max(1, len(columns)))
    parts = [text(4, 12, f"{row_title} ↓", "start", "y-title")]
    parts.append(text(WIDTH - 6, 12, f"{column_title} →", "end", "x-title"))
    parts += [text(LEFT + (i + 0.5) * side, TOP - 8, name, "middle", "name") for i, name in enumerate(columns)]
    parts += [text(LEFT - 8, TOP + (i + 0.5) * TALL + 4, name, "end", "name") for i, name in enumerate(rows)]
    ordered = sorted(cells, key=lambda cell: cell.value is not None and cell.value == best)  # the frame on top
    for cell in ordered:
        at = (LEFT + columns.index(cell.column) * side, TOP + rows.index(cell.row) * TALL)
        share = (cell.value - low) / (high - low) if cell.value is not None and high > low else float(high > 0)
        parts.append(_cell(cell, at, side, share, cell.value is not None and cell.value == best))
    bottom = TOP + TALL * len(rows)
    if high > low:
        parts.append(_key(bottom + 16, low, high, unit))
    return picture(parts, title, WIDTH, bottom + (52 if high > low else 8))


def _cell(cell: Cell, at: tuple[float, float], side: float, share: float, is_best: bool) -> str:
    x, y = at
    shown = "–" if cell.value is None else f"{cell.value:.3g}"
    said = (
        f"{cell.row}, {cell.column}: {shown}{'. ' + cell.detail if cell.detail else ''}{' (best)' if is_best else ''}"
    )
    css = "cell none" if cell.value is None else "cell best" if is_best else "cell"
    lines = [("best", "")] if is_best else []
    lines.append((shown, "strong" if is_best else ""))
    if cell.interval is not None and cell.value is not None and side >= ROOM_FOR_BOUNDS:
        lines.append((f"{cell.interval.low:.2g}–{cell.interval.high:.2g}", ""))
    first = y + TALL / 2 + 4 - LINE * (len(lines) - 1) / 2
    parts = [text(x + side / 2, first + LINE * at, content, "middle", kind) for at, (content, kind) in enumerate(lines)]
    return f"<g><title>{escape(said)}</title>{_shade(css, share, x + 1, y + 1, side - 2, TALL - 2)}{''.join(parts)}</g>"


def _key(top: float, low: float, high: float, unit: str) -> str:
    """From the faintest shade to the deepest, with what they stand for."""
    parts = [_shade("cell", step / (STEPS - 1), LEFT + 26 * step, top, 26, 10) for step in range(STEPS)]
    end = LEFT + 26 * STEPS
    parts += [text(LEFT, top + 26, f"{low:.3g}", "start"), text(end, top + 26, f"{high:.3g}", "end")]
    parts.append(text(end + 10, top + 9, unit, "start"))
    return "".join(parts)


def _shade(css: str, share: float, x: float, y: float, width: float, height: float) -> str:
    percent = FAINTEST + (DEEPEST - FAINTEST) * share
    return (
        f'<rect class="{css}" style="--share:{percent:.0f}%" x="{x:g}" y="{y:g}" width="{width:g}" '
        f'height="{height:g}" rx="{4 if height > 10 else 0}"/>'
    )
