"""Maps of a sweep as HTML: prefill by decode workers, and disaggregated against colocated by length and load."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.experiment.analysis import Capacity, Comparison, Verdict, label_of, varying_axes
from loadgen.experiment.cells import LOADS, Cell
from loadgen.report import charts
from loadgen.report.chart_sections import map_section

SAID: dict[Verdict, str] = {
    "pays": "Disaggregation pays at",
    "loses": "It loses at",
    "same": "It makes no difference at",
    "unclear": "Not told apart:",
    "neither": "Neither keeps up at",
}


def pd_maps(capacities: Sequence[Capacity], attainment: float) -> str:
    """Goodput a worker over prefill (rows) and decode workers (columns), a map for each setting of everything else.
    Row 0 are colocated workers. Nothing where only one shape was measured."""
    groups: dict[Cell, list[Capacity]] = {}
    for each in capacities:
        groups.setdefault(_without_shape(each.cell), []).append(each)
    varying = [name for name in varying_axes(each.cell for each in capacities) if name not in LOADS]
    made = []
    for setting, mine in groups.items():
        if len({(each.cell.prefill, each.cell.decode) for each in mine}) < 2:
            continue
        what = ", ".join(label_of(setting, varying).split(", ")[1:])
        made.append(
            map_section(
                f"Goodput a worker{': ' if what else ''}{what}",
                _cells(mine),
                "prefill",
                "decode workers",
                f"Requests a second and worker within the limits, at the highest load with {100 * attainment:g} % of "
                "them; row 0: colocated workers. The best cell is framed.",
            )
        )
    return "".join(made)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Where disaggregation pays and where it loses, a row for each setting and a column for each load."""
    if not comparisons:
        return ""
    cells = [each.disaggregated.cell for each in comparisons]
    varying = [name for name in varying_axes(cells) if name not in LOADS]
    loads = sorted({cell.load for cell in cells})
    by_place = {(_setting(each.disaggregated.cell), each.disaggregated.cell.load): each for each in comparisons}
    settings = list(dict.fromkeys(_setting(cell) for cell in cells))
    head = "".join(f"<th>{escape(_load(cells[0], load))}</th>" for load in loads)
    rows = []
    for setting in settings:
        found = "".join(_verdict_cell(by_place.get((setting, load))) for load in loads)
        label = escape(label_of(setting, varying))
        rows.append(f'<tr><th title="{label}">{label}</th>{found}</tr>')
    return (
        '<div class="card scroll"><table class="verdicts"><thead><tr><th>Disaggregated against colocated</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="soft">{escape(region(comparisons))} Cells: share of the requests within the limits, of the pools '
        "and of as many colocated workers with as many processors; below, the 95 % interval over seeds of what the "
        "pools add to goodput, pair by pair. It pays or loses where that is on one side of zero; it is the same within "
        "5 %.</p>"
    )


def region(comparisons: Sequence[Comparison]) -> str:
    """Where disaggregation loses, and where it pays, in a sentence each."""
    parts = []
    for verdict, said in SAID.items():
        mine = [_where(each, comparisons) for each in comparisons if each.verdict == verdict]
        if mine or verdict in ("pays", "loses"):
            parts.append(f"{said} {'; '.join(mine) or 'no cell'}.")
    return " ".join(parts)


def _where(comparison: Comparison, among: Sequence[Comparison]) -> str:
    varying = varying_axes(each.disaggregated.cell for each in among)
    shapes = {each.disaggregated.cell.shape for each in among}
    label = label_of(comparison.disaggregated.cell, varying)
    return label if len(shapes) > 1 else label.partition(", ")[2] or label


def _verdict_cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return "<td>–</td>"
    ours, theirs = (100 * each.attainment for each in (comparison.disaggregated, comparison.colocated))
    sure = comparison.interval
    bounds = f"goodput {100 * sure.low:+.0f} to {100 * sure.high:+.0f} %" if sure else ""
    return (
        f'<td class="{comparison.verdict}"><b>{comparison.verdict}</b> '
        f"{ours:.0f} : {theirs:.0f} % in time<small>{bounds}</small></td>"
    )


def _cells(capacities: Sequence[Capacity]) -> list[charts.Cell]:
    ordered = sorted(capacities, key=lambda each: (each.cell.prefill, each.cell.decode))
    columns = sorted({each.cell.decode for each in ordered})
    rows = sorted({each.cell.prefill for each in ordered})
    found = {(each.cell.prefill, each.cell.decode): each for each in ordered}
    return [_map_cell(row, column, found.get((row, column))) for row in rows for column in columns]


def _map_cell(row: int, column: int, found: Capacity | None) -> charts.Cell:
    if found is None:
        return charts.Cell(str(row), str(column), None, "not measured")
    sure = f", 95 % interval {found.interval.low:.3g} to {found.interval.high:.3g}" if found.interval else ""
    return charts.Cell(str(row), str(column), found.per_worker, f"{found.label}{sure}")


def _load(cell: Cell, load: float) -> str:
    varied = msgspec.structs.replace(cell, **{cell.load_name: load})
    return label_of(varied, [cell.load_name]).rpartition(", ")[2]


def _setting(cell: Cell) -> Cell:
    return msgspec.structs.replace(cell, **dict.fromkeys(LOADS))


def _without_shape(cell: Cell) -> Cell:
    """A colocated cell lies on the map of the pairs that it is held against, whatever their remote prefill is."""
    return msgspec.structs.replace(_setting(cell), mode="disaggregated", prefill=0, decode=1, remote_prefill="auto")
