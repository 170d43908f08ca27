"""Maps of pools: every choice of remote prefill has its own, and a map of failures has no best cell."""

from __future__ import annotations

import re

import msgspec
from experiments import experiment, run_with

from loadgen.experiment.analysis import measured
from loadgen.experiment.capacity import Capacity, capacities
from loadgen.experiment.maps import best_of, groups_of_shapes, pd_maps
from loadgen.experiment.spec import Sweep
from loadgen.report.heat_map import DEEPEST, FAINTEST, Cell, heat_map

SWEEP = Sweep(
    mode=["disaggregated", "colocated"],
    prefill=[1],
    decode=[1],
    remote_prefill=["auto", "always"],
    input_tokens=[64],
    output_tokens=[8],
    rate=[10.0],
)


def found() -> list[Capacity]:
    """1P+1D keeps up where its router may choose, and misses everything where it may not."""
    made = msgspec.structs.replace(experiment(), sweep=SWEEP)
    shares = {("disaggregated", "auto"): 1.0, ("disaggregated", "always"): 0.0, ("colocated", "never"): 0.95}
    runs = [
        run_with(cell, seed, shares[cell.mode, cell.remote_prefill])
        for cell in made.sweep.made()
        for seed in made.seeds
    ]
    return capacities(measured(runs), made)


def test_each_choice_of_remote_prefill_has_a_map_and_the_colocated_workers_are_on_all() -> None:
    groups = groups_of_shapes(found())
    assert [setting for setting, _ in groups] == ["remote prefill auto", "remote prefill always"]
    values = [{str(each.cell.shape): each.per_worker for each in mine} for _, mine in groups]
    assert values == [{"1P+1D": 5.0, "2 colocated": 4.75}, {"1P+1D": 0.0, "2 colocated": 4.75}]


def test_the_caption_names_what_the_map_shows() -> None:
    for _, mine in groups_of_shapes(found()):
        best = max(each.per_worker or 0.0 for each in mine)
        assert f"with {best:.3g}/s a worker" in best_of(mine)
    maps = pd_maps(found(), 0.9)
    framed = re.findall(r"<title>(\d, \d): ([\d.]+)\.[^<]*\(best\)</title>", maps)
    assert framed == [("1, 1", "5"), ("0, 2", "4.75")]


def test_a_map_of_colocated_workers_alone() -> None:
    two, three = (msgspec.structs.replace(SWEEP, mode=["colocated"], decode=[number]) for number in (1, 2))
    capacity = []
    for sweep in (two, three):
        made = msgspec.structs.replace(experiment(), sweep=sweep)
        capacity += capacities(measured(run_with(cell, 1, 1.0) for cell in sweep.made()), made)
    ((_, mine),) = groups_of_shapes(capacity)
    assert [str(each.cell.shape) for each in mine] == ["2 colocated", "3 colocated"]


def shades(*values: float | None) -> list[str]:
    drawn = heat_map("t", [Cell("1", str(at), value) for at, value in enumerate(values)], "r", "c", "u")
    return re.findall(r'<rect class="(cell[a-z ]*)" style="--share:(\d+)%"', drawn)[: len(values)]  # type: ignore[return-value]


def test_zeros_alone_are_faint_and_nobody_is_best() -> None:
    assert shades(0.0, 0.0) == [("cell", str(FAINTEST))] * 2
    assert shades(0.0, None) == [("cell", str(FAINTEST)), ("cell none", str(FAINTEST))]
    assert shades(0.0, 3.0) == [("cell", str(FAINTEST)), ("cell best", str(DEEPEST))]
    assert shades(3.0) == [("cell best", str(DEEPEST))]
