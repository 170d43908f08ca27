"""The simulator against a second implementation with the same fixed step times: reuse, TTFT and ITL within 5 %."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sim.independent import replay as independent
from loadgen.sim import cli

PREFILL_MS, DECODE_MS = 180.0, 24.0


def write_trace(path: Path, num_requests: int, seed: int) -> None:
    """Sessions of several turns that share a system prompt, at coarse times as Mooncake's are."""
    rng = random.Random(seed)
    next_id, sessions, lines, clock = 1, [], [], 0
    for _ in range(num_requests):
        clock += rng.choice([0, 0, 500, 1_000])
        session = rng.choice(sessions) if sessions and rng.random() < 0.6 else [0]
        grown = [*session, *range(next_id, next_id + rng.randint(1, 8))]
        next_id = grown[-1] + 1
        sessions = [*sessions[-40:], grown]
        length = 512 * len(grown) - rng.randint(0, 511)
        lines.append(
            {"timestamp": clock, "input_length": length, "output_length": rng.randint(1, 300), "hash_ids": grown}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("kv_blocks", "num_workers", "seed"), [(4_000, 3, 0), (120, 4, 1), (200, 8, 2)])
def test_round_robin_with_fixed_timing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kv_blocks: int, num_workers: int, seed: int
) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, 600, seed)
    timing = f"prefill_ms={PREFILL_MS},decode_ms={DECODE_MS}"
    code = cli.replay(
        path, fleet=str(num_workers), policy="round_robin", fixed_timing=timing, kv_blocks=kv_blocks, json=True
    )
    ours = json.loads(capsys.readouterr().out)
    theirs = independent(path, num_workers, kv_blocks, PREFILL_MS, DECODE_MS, 600)
    assert code == 0
    assert 0.05 < theirs["reuse"] < 0.95
    assert ours["reuse"] == pytest.approx(theirs["reuse"], rel=0.05)
    assert ours["ttft_ms"]["mean"] == pytest.approx(theirs["ttft_mean_ms"], rel=0.05)
    assert ours["ttft_ms"]["p99"] == pytest.approx(theirs["ttft_p99_ms"], rel=0.05)
    assert ours["itl_ms"]["mean"] == pytest.approx(theirs["itl_mean_ms"], rel=0.05)
    assert ours["predicted_reuse"] == pytest.approx(ours["reuse"], rel=0.05)


def test_what_cannot_be_read_is_an_error_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [1]}\n')
    assert cli.replay(path) == 2
    assert "line 1" in capsys.readouterr().err
    assert cli.replay(tmp_path / "nothing.jsonl") == 2


@pytest.mark.parametrize(
    ("timing", "says"),
    [
        ("prefill_ms=1", "lacks decode_ms"),
        ("prefill_ms=1,decode_ms=x", "decode_ms is 'x'"),
        ("prefill_ms=1,decode=2", "knows no 'decode'"),
        ("prefill_ms=0,decode_ms=1", "prefill_ms"),
        ("prefill_ms=inf,decode_ms=1", "prefill_ms is 'inf'"),
        ("prefill_ms=1e200,decode_ms=1", "prefill_ms is '1e200'"),
        ("prefill_ms=1,prefill_ms=5,decode_ms=1", "prefill_ms twice"),
        ("", "knows no ''"),
    ],
)
def test_step_times_that_cannot_be_are_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], timing: str, says: str
) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, 3, 0)
    assert cli.replay(path, fixed_timing=timing) == 2
    assert says in capsys.readouterr().err
    assert cli.replay(path, fixed_timing="prefill_ms=9,decode_ms=1", timing="fit:x/y") == 2
    assert "only one" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_events_in_any_process(tmp_path: Path) -> None:
    """Whatever order sets of strings have there."""
    path, hashes = tmp_path / "trace.jsonl", set()
    write_trace(path, 300, 5)
    for hash_seed in ("0", "1"):
        for fleet in ("3", "2P+2D"):
            done = subprocess.run(
                [sys.executable, "-m", "loadgen", *f"replay {path} --fleet {fleet} --queue wait --json".split()],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
            )
            hashes.add((fleet, json.loads(done.stdout)["trace_hash"]))
    assert len(hashes) == 2


def test_requests_that_never_fit_are_counted_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"timestamp": i, "input_length": 512 * i + 9, "output_length": 3, "hash_ids": []} for i in range(9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.replay(path, fleet="2", kv_blocks=4, json=True) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_requests"], summary["num_failed"]) == (9, 5)
    assert summary["attainment"] == pytest.approx(4 / 9)
