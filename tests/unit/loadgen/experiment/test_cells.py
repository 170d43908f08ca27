from __future__ import annotations

from itertools import pairwise

import pytest
from experiments import experiment

from loadgen.client.plan import make_plan
from loadgen.experiment.cells import in_order
from loadgen.experiment.configs import check_windows, planned_s, run_config, settle_config
from loadgen.experiment.spec import SpecError

TARGET = ("http://127.0.0.1:1", "m")


def test_colocated_has_as_many_workers_and_no_prefill() -> None:
    cells = experiment().sweep.made()
    for cell in cells:
        if cell.mode == "colocated":
            assert (cell.prefill, cell.remote_prefill) == (0, "never")
    totals = {
        mode: {cell.num_workers for cell in cells if cell.mode == mode} for mode in ("disaggregated", "colocated")
    }
    assert totals["disaggregated"] == totals["colocated"] == {2, 3}


def test_every_seed_measures_every_cell_once_in_an_order_of_its_own() -> None:
    made = experiment()
    cells = made.sweep.made()
    ordered = in_order(cells, made.seeds, 0)
    assert ordered == in_order(cells, made.seeds, 0)  # a continuation finds the same order
    assert ordered != in_order(cells, made.seeds, 1)
    parts = [ordered[start : start + len(cells)] for start in range(0, len(ordered), len(cells))]
    for seed, part in zip(made.seeds, parts, strict=True):
        assert {each for _, each in part} == {seed}
        assert sorted(cell.key for cell, _ in part) == sorted(cell.key for cell in cells)
    assert len({tuple(cell.key for cell, _ in part) for part in parts}) == len(parts)


def test_shapes_change_as_seldom_as_can_be_and_none_is_always_first() -> None:
    made = experiment()
    cells = made.sweep.made()
    ordered = [cell.shape for cell, _ in in_order(cells, made.seeds, 3)]
    changes = sum(before != after for before, after in pairwise(ordered))
    assert changes == 3 * (len({cell.shape for cell in cells}) - 1)  # a seed begins where the last one ended
    firsts = [ordered[start] for start in range(0, len(ordered), len(cells))]
    assert len(set(firsts)) > 1


def test_cells_meet_equal_traffic_and_never_each_others_prompts() -> None:
    made = experiment()
    a, b = made.sweep.made()[:2]
    of_a, of_b = (run_config(made, cell, 1, 7, TARGET) for cell in (a, b))
    assert of_a.seed == of_b.seed
    again = run_config(made, a, 1, 7, TARGET, attempt=1)
    salts = {of_a.salt, of_b.salt, again.salt, settle_config(of_a, 2, 2).salt, run_config(made, a, 1, 8, TARGET).salt}
    assert len(salts) == 5
    assert run_config(made, a, 1, 7, TARGET) == of_a
    assert of_a.continuous_usage  # gaps are between tokens, as those in virtual time are


def test_the_rate_follows_from_tokens_and_workers() -> None:
    text = """
name = "t"
arrivals = { requests = 30, duration_s = 100 }
sweep = { prefill = [1], decode = [3], input_tokens = [500], output_tokens = [5], %s }
"""
    by_tokens = experiment(text % "input_tokens_per_s = [1000.0]")
    cell = by_tokens.sweep.made()[0]
    assert cell.requests_per_s == 2.0
    assert planned_s(cell, by_tokens.arrivals) == 15.0
    assert experiment(text % "rate_per_worker = [0.5]").sweep.made()[0].requests_per_s == 2.0
    closed = experiment(text % "concurrency = [4]").sweep.made()[0]
    assert closed.requests_per_s is None
    assert run_config(by_tokens, cell, 1, 1, TARGET).workload == "independent:input=500,output=5"


def test_low_rates_get_a_least_number_of_requests() -> None:
    made = experiment(
        """
name = "t"
arrivals = { duration_s = 10, min_requests = 5 }
sweep = { input_tokens = [500], output_tokens = [5], rate = [0.1, 2.0] }
"""
    )
    slow, fast = made.sweep.made()
    for cell, number, length_s in ((slow, 5, 50.0), (fast, 20, 10.0)):
        config = run_config(made, cell, 1, 1, TARGET)
        assert len(make_plan(config).requests) == number
        assert planned_s(cell, made.arrivals) == length_s


def test_shapes_that_read_alike_lose_no_cell() -> None:
    """Two colocated workers are "2 colocated" whether the router was told "auto" or "never"."""
    made = experiment(
        """
name = "t"
arrivals = { duration_s = 10 }
sweep = { prefill = [0], decode = [2], input_tokens = [64], output_tokens = [8], rate = [1.0, 2.0, 3.0], \
mode = ["disaggregated", "colocated"] }
"""
    )
    cells = made.sweep.made()
    interleaved = sorted(cells, key=lambda cell: cell.load)
    assert len({str(cell.shape) for cell in cells}) == 1 < len({cell.shape for cell in cells})
    for given in (cells, interleaved):
        ordered = in_order(given, [1, 2], 0)
        assert sorted((cell.key, seed) for cell, seed in ordered) == sorted((c.key, s) for c in cells for s in (1, 2))


def test_no_two_cells_share_a_file_name() -> None:
    made = experiment(
        """
name = "t"
arrivals = { duration_s = 10 }
sweep = { input_tokens = ["128|1024", "128~1024", "128..1024", 128], output_tokens = [8], rate = [1.0] }
"""
    )
    keys = [cell.key for cell in made.sweep.made()]
    assert len(set(keys)) == 4
    assert all(key.replace("-", "").replace(".", "").replace("_", "").isalnum() for key in keys)
    assert keys[3] == "1P1D-min-ttft-auto-chunk512-in128-out8-rate1.0"


def test_runs_of_which_nothing_would_be_measured_are_found_beforehand() -> None:
    text = """
name = "t"
seeds = [1, 2, 3]
arrivals = { duration_s = 5, %s }
sweep = { input_tokens = [64], output_tokens = [8], %s }
"""
    check_windows(experiment(text % ("warmup_s = 2, tail_s = 2", "rate = [4.0]")))
    for arrivals, load, said in (
        ("warmup_s = 3, tail_s = 3", "rate = [4.0]", "nothing is left"),
        ("warmup_s = 3, tail_s = 3", "concurrency = [4]", "nothing is left"),
        ("min_requests = 5, warmup_s = 4, tail_s = 0.5", "rate = [2.0]", "seed 2: nothing is left of 2.8 s"),
        ("warmup_s = 0", "rate = [4.0, 0.01]", "rate0.01.*no request is sent"),
    ):
        with pytest.raises(SpecError, match=said):
            check_windows(experiment(text % (arrivals, load)))
