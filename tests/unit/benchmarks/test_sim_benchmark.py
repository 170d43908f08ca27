from pathlib import Path

from benchmarks.sim.report import as_table
from benchmarks.sim.runs import MEASURES, Case, Runs, run_all, summarise, wins
from benchmarks.sim.scale import measure_scale
from loadgen.traces.mooncake import TraceRequest, write_mooncake


def test_seeds_become_intervals_and_a_table(tmp_path: Path) -> None:
    requests = [TraceRequest(50.0 * i, 1_500, 9, (0, i + 1, i + 500)) for i in range(60)]
    (tmp_path / "tiny_trace.jsonl").write_text("\n".join(write_mooncake(requests)))
    said: list[str] = []
    cases = [Case("tiny", "1P+1D", "random", seed, 500.0) for seed in range(2)]
    answers = run_all(Runs(tmp_path, 40, said.append), cases, jobs=2)
    (found,) = summarise(answers)
    assert wins(answers, "random") == []  # against nobody
    assert (found["num_seeds"], found["num_failed"], len(said)) == (2, 0, 2)
    for name in MEASURES:
        assert found[name]["low"] <= found[name]["mean"] <= found[name]["high"]
    assert found["ttft_mean_ms"]["low"] < found["ttft_mean_ms"]["high"]  # seeds differ
    comparison = {"concurrency": 4, "measured_tpot_ms": 13.3, "simulated_tpot_ms": 13.0, "error": -0.02}
    numbers = {
        "agreement": {"reuse": {"ours": 0.1, "independent": 0.1, "error": 0.0}},
        "replay_12031_s": None,
        "replay_s": 1.5,
        "replay_num_requests": 40,
        "interference": [comparison],
        "interference_mape": 0.02,
        "results": [found],
        "wins": [],
    }
    assert "random" in as_table(numbers)


def answer(mean: float, p99: float) -> dict[str, object]:
    return {"ttft_ms": {"mean": mean, "p99": p99}}


def test_a_win_is_one_in_mean_and_tail_for_every_seed() -> None:
    figures = {
        "ours": [(10.0, 100.0), (11.0, 105.0), (10.5, 101.0)],
        "slower": [(20.0, 200.0), (21.0, 203.0), (20.6, 201.0)],
        "longer-tail-only": [(10.1, 200.0), (10.9, 203.0), (10.5, 201.0)],
    }
    answers = [
        (Case("t", "8", policy, seed, 0.0), answer(*each))
        for policy, runs in figures.items()
        for seed, each in enumerate(runs)
    ]
    found = {each["against"]: each for each in wins(answers, "ours")}
    assert {name: each["wins"] for name, each in found.items()} == {"slower": True, "longer-tail-only": False}
    assert found["slower"]["ttft_mean_ms"]["high"] < 0
    one_seed = [each for each in answers if each[0].seed == 0]
    assert not any(each["wins"] for each in wins(one_seed, "ours"))


def test_a_small_fleet_at_scale() -> None:
    found = measure_scale(2, lambda text: None)
    assert (found["requests"], found["failed"]) == (200, 0)
    assert found["indexed_blocks"] >= 200 * 100
