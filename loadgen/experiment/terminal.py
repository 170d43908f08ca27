"""An experiment in a terminal, as text: the cells, what each configuration sustains, and the map of pools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadgen.experiment.analysis import Measured, simulated
from loadgen.experiment.capacity import Capacity, capacities
from loadgen.experiment.comparison import comparisons
from loadgen.experiment.maps import best_of, groups_of_shapes, regions
from loadgen.experiment.results import State
from loadgen.experiment.sections import load_of, rank
from loadgen.report import figures
from loadgen.report.figures import Figure, bare
from loadgen.report.result import UNKNOWN_IF_SIMULATED

IN_TIME = (
    ("goodput", "req/s", figures.GOODPUT),
    ("in time", "%", figures.ATTAINMENT),
    ("failed", "a run", figures.COUNTS[1]),
    ("TTFT p50", "ms", figures.LATENCIES["ttft"][1]),
    ("TTFT p99", "ms", figures.LATENCIES["ttft"][4]),
    ("TPOT p50", "ms", figures.LATENCIES["tpot"][1]),
    ("TPOT p99", "ms", figures.LATENCIES["tpot"][4]),
    ("ITL p99", "ms", figures.LATENCIES["itl"][4]),
    ("E2E p99", "ms", figures.LATENCIES["e2e"][4]),
)
COSTS = (
    ("prefill", "ms", figures.COSTS["prefill"][0]),
    ("transfer", "ms", figures.COSTS["transfer"][0]),
    ("exposed", "ms", figures.COSTS["exposed"][0]),
    ("decode", "ms", figures.COSTS["decode"][0]),
    ("hits", "%", figures.CACHE[0]),
    ("predicted", "%", figures.CACHE[1]),
    ("possible", "%", figures.CACHE[2]),
    ("balance P", "", figures.BALANCES["prompt"]),
    ("balance D", "", figures.BALANCES["output"]),
    ("busy P", "workers", figures.BUSY[0]),
    ("busy D", "workers", figures.BUSY[1]),
)
COLUMN = 11


def summary_text(state: State, cells: Sequence[Measured]) -> str:
    return "\n".join(_lines(state, cells))


def _lines(state: State, cells: Sequence[Measured]) -> Iterator[str]:
    made = state.experiment
    label = {True: "  (simulated)", None: f"  ({UNKNOWN_IF_SIMULATED})", False: ""}[simulated(cells)]
    limits = f"TTFT ≤ {made.slo.ttft_ms:g} ms, TPOT ≤ {made.slo.tpot_ms:g} ms"
    yield f"{made.name}{label}: {limits}; failures are misses; means over seeds, []: 95 % interval"
    yield from _table(cells, IN_TIME)
    if any(each.series.estimate(figures.PHASES[0]) for each in cells):
        yield "  what a request cost, on average, and how the workers shared the work (P: prompts, D: decode):"
        yield from _table(cells, COSTS)
    found = capacities(cells, made)
    width = max((len(each.label) for each in found), default=4) + 2
    yield f"  goodput a worker, at the highest load with {100 * made.slo.attainment:g} % in time over all seeds:"
    for each in sorted(found, key=rank):
        sure = f" [{each.interval.low:.3g}, {each.interval.high:.3g}]" if each.interval else ""
        note = f" ({each.note})" if each.note else ""
        goodput = "not known" if each.per_worker is None else f"{each.per_worker:.3g}/s{sure} at {load_of(each)}"
        yield f"    {each.label:<{width}}{goodput}{note}"
    for setting, mine in groups_of_shapes(found):
        yield f"  prefill (down) by decode (across) workers{': ' if setting else ''}{setting}. {best_of(mine)}"
        yield from _map(mine)
    for said in regions(comparisons(cells)) if comparisons(cells) else ():
        yield f"  {said}"


def _table(cells: Sequence[Measured], columns: Sequence[tuple[str, str, Figure]]) -> Iterator[str]:
    """What no cell has is left out."""
    shown = [each for each in columns if any(cell.series.estimate(each[2]) for cell in cells)]
    width = max([len(each.label) for each in cells], default=4) + 2
    yield f"  {'':<{width}}" + "".join(f"{title:>{COLUMN}}" for title, _, _ in shown) + "  runs"
    yield f"  {'':<{width}}" + "".join(f"{unit:>{COLUMN}}" for _, unit, _ in shown)
    for each in cells:
        found = [(each.series.estimate(figure), figure.unit) for _, _, figure in shown]
        values = "".join(f"{'–' if one is None else bare(one.value, unit):>{COLUMN}}" for one, unit in found)
        doubt = " INVALID" if not each.valid else f" and {len(each.left_out)} invalid" if each.left_out else ""
        yield f"  {each.label:<{width}}{values}  {len(each.runs)}{doubt}"


def _map(capacities: Sequence[Capacity]) -> Iterator[str]:
    """The best has a star; colocated workers are in row 0."""
    columns = sorted({each.cell.decode for each in capacities})
    best = max((each.per_worker for each in capacities if each.per_worker is not None), default=0.0)
    found = {(each.cell.prefill, each.cell.decode): each.per_worker for each in capacities}
    yield f"    {'':>3}" + "".join(f"{column:>9}" for column in columns)
    for row in sorted({each.cell.prefill for each in capacities}):
        values = [found.get((row, column)) for column in columns]
        shown = ["–" if each is None else f"{'*' if each == best and best else ''}{each:.3g}" for each in values]
        yield f"    {row:>3}" + "".join(f"{each:>9}" for each in shown)
