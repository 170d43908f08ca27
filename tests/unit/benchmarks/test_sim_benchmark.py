from pathlib import Path

from benchmarks.sim.report import as_table
from benchmarks.sim.runs import MEASURES, Case, Runs, sweep
from benchmarks.sim.scale import measure_scale
from loadgen.traces.mooncake import TraceRequest, write_mooncake


def test_seeds_become_intervals_and_a_table(tmp_path: Path) -> None:
    requests = [TraceRequest(50.0 * i, 1_500, 9, (0, i + 1, i + 500)) for i in range(60)]
    (tmp_path / "tiny_trace.jsonl").write_text("\n".join(write_mooncake(requests)))
    said: list[str] = []
    cases = [Case("tiny", "1P+1D", "random", seed, 500.0) for seed in range(2)]
    (found,) = sweep(Runs(tmp_path, 40, said.append), cases, jobs=2)
    assert (found["num_seeds"], found["num_failed"], len(said)) == (2, 0, 2)
    for name in MEASURES:
        assert found[name]["low"] <= found[name]["mean"] <= found[name]["high"]
    assert found["ttft_mean_ms"]["low"] < found["ttft_mean_ms"]["high"]  # seeds differ
    comparison = {"concurrency": 4, "measured_tpot_ms": 13.3, "simulated_tpot_ms": 13.0, "error": -0.02}
    numbers = {
        "replay_12031_s": None,
        "replay_s": 1.5,
        "replay_num_requests": 40,
        "interference": [comparison],
        "interference_mape": 0.02,
        "results": [found],
    }
    assert "random" in as_table(numbers)


def test_a_small_fleet_at_scale() -> None:
    found = measure_scale(2, lambda text: None)
    assert (found["requests"], found["failed"]) == (200, 0)
    assert found["indexed_blocks"] >= 200 * 100
