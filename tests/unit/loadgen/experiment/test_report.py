"""What recorded cells come to, and whether page, tables and terminal say it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from experiments import experiment, runs_of

from loadgen.experiment.analysis import measured
from loadgen.experiment.capacity import Capacity, capacities
from loadgen.experiment.cells import Cell
from loadgen.experiment.comparison import comparisons
from loadgen.experiment.export import csv_text, json_bytes
from loadgen.experiment.maps import best_of, comparison_table, pd_maps, region
from loadgen.experiment.page import experiment_page
from loadgen.experiment.results import State, open_folder
from loadgen.experiment.sections import load_of
from loadgen.experiment.terminal import summary_text
from loadgen.report.intervals import Interval

MADE = experiment()
STATE = State(experiment=MADE, salt=1, started_at_s=1.7e9)


def ttft_ms(cell: Cell) -> float:
    """Long prompts are late where workers do both; the pair is late at short ones under the higher rate."""
    if cell.input_tokens == 512:
        return 30.0 if cell.prefill else 500.0
    return 500.0 if cell.prefill and cell.rate == 40.0 else 30.0


RUNS = runs_of(MADE, ttft_ms)
CELLS = measured(RUNS)


def sustained(attainment: float = 0.85) -> list[Capacity]:
    slo = msgspec.structs.replace(MADE.slo, attainment=attainment)
    return capacities(CELLS, msgspec.structs.replace(MADE, slo=slo))


def test_pairs_are_compared_seed_by_seed() -> None:
    found = {
        (pair.disaggregated.cell.input_tokens, pair.disaggregated.cell.rate, pair.disaggregated.cell.decode): pair
        for pair in comparisons(CELLS)
    }
    assert len(found) == 8
    for (length, rate, _), pair in found.items():
        expected = "pays" if length == 512 else "loses" if rate == 40.0 else "unclear"  # 57 requests: too few for 5 %
        assert pair.verdict == expected
        assert pair.colocated.cell.decode == pair.disaggregated.cell.num_workers
    said = region(comparisons(CELLS))
    assert said.startswith("Disaggregation pays at 1P+1D, in 512, 20/s;")
    assert "It loses at 1P+1D, in 64, 40/s; 1P+2D, in 64, 40/s." in said


def test_one_seed_decides_nothing() -> None:
    found = comparisons(measured([run for run in RUNS if run.seed == 1]))
    assert {pair.verdict for pair in found} == {"unclear"}


def test_capacity_is_the_best_sustained_goodput_a_worker() -> None:
    found = {(each.cell.prefill, each.cell.decode, each.cell.input_tokens): each for each in sustained()}
    short, long = found[1, 1, 64], found[1, 1, 512]
    assert short.cell.rate == 20.0  # above it the limits are missed
    assert not short.at_the_end
    assert long.cell.rate == 40.0
    assert long.at_the_end
    goodput = [
        40.0 * run.result.summary.goodput.attainment
        for run in RUNS
        if (run.cell.prefill, run.cell.decode, run.cell.input_tokens, run.cell.rate) == (1, 1, 512, 40.0)
    ]
    assert long.per_worker == pytest.approx(sum(goodput) / 3 / 2)
    assert long.interval is not None
    assert long.interval.low < long.per_worker < long.interval.high
    nothing = found[0, 2, 512]
    assert (nothing.per_worker, nothing.sustained) == (0.0, False)
    strict = {each.per_worker for each in sustained(0.95)}
    assert strict == {0.0}  # a tenth of the requests fails everywhere: failures are misses


def test_idle_workers_count_in_the_balance() -> None:
    by_shape = {(each.cell.prefill, each.cell.decode): each for each in CELLS}
    assert by_shape[1, 1].balance("output") == 1.0
    assert by_shape[1, 2].balance("output") == 0.5  # one of two got everything
    assert by_shape[0, 3].balance("prompt") == pytest.approx(1 / 3)


def test_maps_have_a_cell_for_each_shape() -> None:
    maps = pd_maps(sustained(), 0.85)
    assert maps.count("<svg") == 2  # one for each prompt length
    assert maps.count('class="cell best"') == 2
    table = comparison_table(comparisons(CELLS))
    assert table.count('<td class="loses">') == 2
    assert table.count('<td class="pays">') == 4


def test_the_best_is_named_with_those_that_it_cannot_be_told_from() -> None:
    found = [each for each in sustained() if each.cell.input_tokens == 512 and each.cell.prefill]
    best, other = sorted(found, key=lambda each: -each.per_worker)
    assert best.cell.prefill == best.cell.decode == 1
    said = best_of(found)
    assert said.startswith(f"Best: 1P+1D with {best.per_worker:.3g}/s a worker (")
    assert "Not told apart" not in said
    close = replace(other, interval=Interval(0.0, best.per_worker))
    assert "Not told apart from it: 1P+2D." in best_of([best, close])
    assert best_of([replace(best, per_worker=0.0)]) == "None keeps the limits at any load tried."


def test_a_capacity_says_at_which_load_it_is() -> None:
    found = {(each.cell.prefill, each.cell.decode, each.cell.input_tokens): each for each in sustained()}
    assert (load_of(found[1, 1, 64]), found[1, 1, 64].note) == ("20/s", "85 % in time is not certain")
    assert found[1, 1, 512].note.endswith("the highest tried: there may be more")
    assert (load_of(found[0, 2, 512]), found[0, 2, 512].note) == ("–", "not even at the lowest load")
    in_time = found[1, 1, 64].in_time
    assert in_time is not None
    assert in_time.value == pytest.approx(0.9, abs=0.05)


def test_the_terminal_has_the_costs_and_the_map() -> None:
    easier = msgspec.structs.replace(MADE, slo=msgspec.structs.replace(MADE.slo, attainment=0.85))
    text = summary_text(msgspec.structs.replace(STATE, experiment=easier), CELLS)
    for word in ("exposed", "predicted", "possible", "balance P", "busy P", "failures are misses", "E2E p99"):
        assert word in text
    assert text.count("prefill (down) by decode (across) workers") == 2  # one for each prompt length
    assert text.count(" *") == 2


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = experiment_page(STATE, CELLS, num_planned=len(RUNS) + 3)
    checker = Checker()
    checker.feed(page)
    assert (checker.open, checker.loads) == ([], [])
    assert "<script" not in page
    for heading in ("What each configuration sustains", "Prefill and decode workers", "Disaggregated or colocated"):
        assert f"<h2>{heading}</h2>" in page
    for heading in ("What each phase costs", "How busy each phase was", "Over the load", "Latencies", "Distributions"):
        assert f"<h2>{heading}</h2>" in page
    assert f"{len(RUNS)} of {len(RUNS) + 3} runs, not finished" in page
    assert "prefers-color-scheme: dark" in page
    assert "Transfer exposed p99" in page


def test_tables_have_every_run_and_every_figure() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(CELLS))))
    assert len(rows) == len(RUNS)
    assert {row["exposed_mean_ms"] for row in rows if row["prefill"] == "1"} == {"1"}
    assert {row["exposed_mean_ms"] for row in rows if row["prefill"] == "0"} == {""}
    content = json.loads(json_bytes(STATE, CELLS))
    assert len(content["cells"]) == len(CELLS)
    assert content["best"] is None  # a tenth of the requests fails everywhere
    assert {each["goodput_per_worker"] for each in content["capacities"]} == {0.0}
    assert {pair["verdict"] for pair in content["comparisons"]} == {"pays", "loses", "unclear"}
    assert "as the mean over all seeds" in content["capacities_are"]
    assert "the load was chosen by the same runs" in content["capacities_are"]
    assert content["cells"][0]["figures"]["goodput_per_s"]["interval"]["low"] >= 0
    assert {row["balance_output"] for row in rows if (row["prefill"], row["decode"]) == ("1", "2")} == {"0.5"}
    idle = [each for each in content["cells"] if each["cell"]["decode"] == 2 and each["cell"]["prefill"]]
    assert {each["figures"]["balance_output"]["value"] for each in idle} == {0.5}
    text = summary_text(STATE, CELLS)
    assert "It loses at" in text
    assert all(each.label in text for each in CELLS)


@pytest.mark.parametrize(("simulated", "said"), [(True, "true"), (False, "false"), (None, "")])
def test_cells_of_a_cluster_that_computes_nothing_are_labelled(simulated: bool | None, said: str) -> None:
    runs = [
        msgspec.structs.replace(run, result=msgspec.structs.replace(run.result, simulated=simulated)) for run in RUNS
    ]
    cells = measured(runs)
    page, text = experiment_page(STATE, cells, len(RUNS)), summary_text(STATE, cells)
    assert ("SIMULATED" in page) is ("Test (simulated)" in page) is ("(simulated)" in text) is (simulated is True)
    for whole in (page, text):
        assert ("not known whether a model computed" in whole.lower()) is (simulated is None)
    assert {row["simulated"] for row in csv.DictReader(io.StringIO(csv_text(cells)))} == {said}
    content = json.loads(json_bytes(STATE, cells))
    assert content["simulated"] is simulated
    assert {each["simulated"] for each in content["cells"]} == {simulated}


def test_invalid_runs_do_not_count_beside_valid_ones() -> None:
    first = RUNS[0]
    bad = type(first)(
        cell=first.cell,
        seed=9,
        result=type(first.result)(
            **{name: getattr(first.result, name) for name in first.result.__struct_fields__}
            | {"valid": False, "invalid_because": ["late"]}
        ),
    )
    both, alone = measured([first, bad])[0], measured([bad])[0]
    assert [run.seed for run in both.runs] == [first.seed]
    assert [run.seed for run in both.left_out] == [9]
    assert [run.seed for run in alone.runs] == [9]
    assert (alone.valid, alone.per_worker, alone.attainment) == ([], None, None)
    page = experiment_page(STATE, [both], 1)
    assert "Left out" in page
    assert "seed 9: late" in page
    assert "1 and 1 invalid" in summary_text(STATE, [both])
    rows = list(csv.DictReader(io.StringIO(csv_text([both]))))
    assert [(row["seed"], row["valid"]) for row in rows] == [("1", "true"), ("9", "false")]


def test_runs_come_back_from_their_folder(tmp_path: Path) -> None:
    folder = open_folder(tmp_path, MADE)
    for run in RUNS[:4]:
        folder.write(run)
    assert folder.runs() == RUNS[:4]
