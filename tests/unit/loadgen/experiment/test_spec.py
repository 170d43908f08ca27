"""What a file may say, and what it is told when it is wrong; and the examples, which have to be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments import TEXT

from loadgen.experiment.cells import Cell
from loadgen.experiment.simulated import Simulation
from loadgen.experiment.spec import SpecError, read_experiment

EXAMPLES = sorted((Path(__file__).parents[4] / "loadgen" / "experiments").glob("*.toml"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds = [1, 2, 3]", "seed = 1"), "seed"),
        (("rate = [20.0, 40.0]", ""), "the load is one of rate, rate_per_worker"),
        (("rate = [20.0, 40.0]", "rate = [1.0]\nconcurrency = [4]"), "rate and concurrency is given"),
        (("rate = [20.0, 40.0]", "rate = [0.0]"), "a load is above 0"),
        (("output_tokens = [8]", ""), "sweep.output_tokens is empty"),
        (("[arrivals]", "[workload]\nwhat = 'sessions'\n[arrivals]"), "sweep.input_tokens changes nothing"),
        (("[arrivals]", "[workload]\nwhat = 'sessions:turns={turns}'\n[arrivals]"), "workload.what has {turns}"),
        (("duration_s = 0.95", ""), "say how long a run is"),
        (("seeds = [1, 2, 3]", "seeds = [1, 1]"), "each once"),
        (("decode = [1, 2]", "decode = ['two']"), "sweep.decode"),
        (("decode = [1, 2]", "decode = [0]"), "at least 0 and 1 are needed"),
        (("decode = [1, 2]", "decode = [1]\nworkers = 7"), "no cell has 7 workers"),
        (("prefill = [1]", "prefill = [0]\nremote_prefill = ['always']\n"), "serves nothing"),
        (("[arrivals]", "[cluster]\nworker_options = {policy = 'x'}\n[arrivals]"), "this is an axis"),
        (("[arrivals]", "[cluster]\nworker_options = {kv_bytes = 1}\n[arrivals]"), "has no 'kv_bytes'"),
        (("[arrivals]", "[cluster]\ncores_per_worker = 0\n[arrivals]"), "every worker has at least 1"),
        (("prefill = [1]", "prefill = [1]\ncells = [{prefil = 1}]"), "cells[0] has no prefil"),
        (("rate = [20.0, 40.0]", "input_tokens_per_s = [9.0]\ncells = [{input_tokens = '9..10'}]"), "plain numbers"),
        (("[sweep]", "[sweep"), "is not TOML"),
    ],
)
def test_what_is_wrong_is_said(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    assert change[0] in TEXT
    with pytest.raises(SpecError) as caught:
        read_experiment(written(tmp_path, TEXT.replace(*change)))
    assert said in str(caught.value)
    assert "$" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_experiment(tmp_path / "none.toml")


def test_cells_by_hand_meet_the_rest_of_the_grid(tmp_path: Path) -> None:
    text = TEXT.replace("decode = [1, 2]", "cells = [{prefill = 3, decode = 1}, {prefill = 1, decode = 3}]")
    cells = read_experiment(written(tmp_path, text)).sweep.made()
    assert {(cell.prefill, cell.decode) for cell in cells} == {(3, 1), (1, 3), (0, 4)}
    assert len(cells) == 3 * 2 * 2  # both pairs have the same colocated counterpart: measured once


def test_another_backend_by_flag(tmp_path: Path) -> None:
    assert read_experiment(written(tmp_path, TEXT), "sim").backend == "sim"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_right(path: Path) -> None:
    made = read_experiment(path)
    cells = made.sweep.made()
    assert all(isinstance(cell, Cell) for cell in cells)
    assert len({cell.key for cell in cells}) == len(cells)
    Simulation(made.sim)


def test_there_are_examples() -> None:
    assert {"quick", "pd_map", "policies", "prompt_length_grid"} <= {path.stem for path in EXAMPLES}
