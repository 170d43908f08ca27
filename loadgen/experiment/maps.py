"""Maps of a sweep as HTML: prefill by decode workers, and disaggregated against colocated by length and load."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.experiment.analysis import label_of, load_text, varying_axes, without_load
from loadgen.experiment.capacity import Capacity
from loadgen.experiment.cells import LOADS, Cell
from loadgen.experiment.comparison import MIN_PAIRS, Comparison, Verdict
from loadgen.report import heat_map
from loadgen.report.chart_sections import map_section
from loadgen.report.sections import table

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
    return "".join(
        map_section(
            f"Goodput a worker{': ' if setting else ''}{setting}",
            _cells(mine),
            "prefill workers",
            "decode workers",
            "requests/s a worker",
            f"{best_of(mine)} Requests a second and worker within the limits, at the highest load with "
            f"{100 * attainment:g} % of them in time, as all lower ones; small: 95 % interval over seeds, which leaves "
            "out that the load was chosen by the same runs. Row 0: colocated workers. –: not known.",
        )
        for setting, mine in groups_of_shapes(capacities)
    )


def groups_of_shapes(capacities: Sequence[Capacity]) -> list[tuple[str, list[Capacity]]]:
    """Those that differ in their numbers of workers only, with what else sets them apart from other groups; groups of
    one shape are left out. Colocated workers have no remote prefill to choose, so they are in the group of every choice
    that their pairs have."""
    groups: dict[Cell, dict[tuple[int, int], Capacity]] = {}
    settings = list(dict.fromkeys(_without_shape(each.cell) for each in capacities if each.cell.prefill))
    for each in capacities:
        mine = _without_shape(each.cell)
        among = [one for one in settings if each.cell.prefill == 0 and _same_but_remote(one, mine)] or [mine]
        for setting in among:
            groups.setdefault(setting, {}).setdefault((each.cell.prefill, each.cell.decode), each)
    varying = [name for name in varying_axes(each.cell for each in capacities) if name not in LOADS]
    return [
        (label_of(setting, varying).partition(", ")[2], list(groups[setting].values()))
        for setting in sorted(groups, key=lambda one: settings.index(one) if one in settings else len(settings))
        if len(groups[setting]) > 1
    ]


def best_of(capacities: Sequence[Capacity]) -> str:
    """Which sustains most, and which others cannot be told from it: their intervals overlap. Whole sentences."""
    known = [each for each in capacities if each.per_worker is not None]
    dark = ", ".join(str(each.cell.shape) for each in capacities if each.per_worker is None)
    unknown = f" Not known, for want of valid runs: {dark}." if dark else ""
    unfinished = " Unfinished." if any(each.num_missing for each in capacities) else ""
    best = best_among(known)
    if best is None:
        return f"{'None keeps the limits at any load tried.' if known else ''}{unknown}{unfinished}".strip()
    sure = f" ({best.interval.low:.3g} to {best.interval.high:.3g})" if best.interval else ""
    close = [str(each.cell.shape) for each in known if each is not best and not _clear(each, best)]
    doubt = f" Not told apart from it: {', '.join(close)}." if close else ""
    return f"Best: {best.cell.shape} with {best.per_worker:.3g}/s a worker{sure}.{doubt}{unknown}{unfinished}"


def best_among(capacities: Sequence[Capacity]) -> Capacity | None:
    """None where none is known to sustain anything."""
    best = max(capacities, key=lambda each: each.per_worker or 0.0, default=None)
    return best if best is not None and best.per_worker else None


def _clear(less: Capacity, best: Capacity) -> bool:
    if best.interval is None:
        return False
    if not less.sustained:
        return less.certain  # that it keeps up with no load at all
    return less.interval is not None and less.interval.high < best.interval.low


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Where disaggregation pays and where it loses, a row for each setting and a column for each load."""
    if not comparisons:
        return ""
    cells = [each.disaggregated.cell for each in comparisons]
    varying = [name for name in varying_axes(cells) if name not in LOADS]
    loads = sorted({cell.load for cell in cells})
    by_place = {(without_load(each.disaggregated.cell), each.disaggregated.cell.load): each for each in comparisons}
    settings = list(dict.fromkeys(without_load(cell) for cell in cells))
    head = "".join(f"<th>{escape(load_text(cells[0], load))}</th>" for load in loads)
    rows = []
    for setting in settings:
        found = "".join(_verdict_cell(by_place.get((setting, load))) for load in loads)
        label = escape(label_of(setting, varying))
        rows.append(f"<tr><th>{label}</th>{found}</tr>")
    sentences = "".join(f"<li>{escape(said)}</li>" for said in regions(comparisons))
    return (
        f'<ul class="said">{sentences}</ul>{table(f"<th>Disaggregated : colocated</th>{head}", rows)}'
        '<p class="soft">Cells: share of the requests within the limits, of the pools '
        "and of as many colocated workers with as many processors; below, the 95 % interval over seeds of what the "
        "pools add to goodput, pair by pair, no narrower than one request’s share makes it. It pays or loses where "
        f"that is on one side of zero; it is the same within 5 %; below {MIN_PAIRS} pairs of valid runs it is "
        "unclear.</p>"
    )


def region(comparisons: Sequence[Comparison]) -> str:
    """Where disaggregation loses, and where it pays, in a sentence each."""
    return " ".join(regions(comparisons))


def regions(comparisons: Sequence[Comparison]) -> list[str]:
    """The sentences of `region`, one for each verdict."""
    parts = []
    for verdict, said in SAID.items():
        mine = [_where(each, comparisons) for each in comparisons if each.verdict == verdict]
        if mine or verdict in ("pays", "loses"):
            parts.append(f"{said} {'; '.join(mine) or 'no cell'}.")
    return parts


def _where(comparison: Comparison, among: Sequence[Comparison]) -> str:
    varying = varying_axes(each.disaggregated.cell for each in among)
    shapes = {each.disaggregated.cell.shape for each in among}
    label = label_of(comparison.disaggregated.cell, varying)
    return label if len(shapes) > 1 else label.partition(", ")[2] or label


def _verdict_cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return "<td>–</td>"
    if comparison.in_time is None:
        return f'<td class="{comparison.verdict}"><b>{comparison.verdict}</b> no pair of valid runs</td>'
    ours, theirs = (100 * share for share in comparison.in_time)
    sure = comparison.interval
    bounds = f"goodput {_signed(sure.low)} to {_signed(sure.high)} %" if sure else ""
    return (
        f'<td class="{comparison.verdict}"><b>{comparison.verdict}</b> '
        f"{ours:.0f} : {theirs:.0f} % in time<small>{bounds}</small></td>"
    )


def _signed(share: float) -> str:
    """Percent, with a sign, but for what rounds to nothing."""
    rounded = round(100 * share)
    return "0" if not rounded else f"{rounded:+d}".replace("-", "−")


def _cells(capacities: Sequence[Capacity]) -> list[heat_map.Cell]:
    ordered = sorted(capacities, key=lambda each: (each.cell.prefill, each.cell.decode))
    columns = sorted({each.cell.decode for each in ordered})
    rows = sorted({each.cell.prefill for each in ordered})
    found = {(each.cell.prefill, each.cell.decode): each for each in ordered}
    return [_map_cell(row, column, found.get((row, column))) for row in rows for column in columns]


def _map_cell(row: int, column: int, found: Capacity | None) -> heat_map.Cell:
    if found is None:
        return heat_map.Cell(str(row), str(column), None, "not measured")
    sure = f", 95 % interval {found.interval.low:.3g} to {found.interval.high:.3g}" if found.interval else ""
    note = f"; {found.note}" if found.note else ""
    return heat_map.Cell(str(row), str(column), found.per_worker, f"{found.label}{sure}{note}", found.interval)


def _without_shape(cell: Cell) -> Cell:
    return msgspec.structs.replace(without_load(cell), mode="disaggregated", prefill=1, decode=1)


def _same_but_remote(a: Cell, b: Cell) -> bool:
    return a == msgspec.structs.replace(b, remote_prefill=a.remote_prefill)
