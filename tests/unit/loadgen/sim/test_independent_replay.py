"""The simulator against a second implementation with the same fixed step times: reuse, TTFT and ITL within 5 %."""

import json
import random
from pathlib import Path

import pytest
from independent_replay import replay as independent

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
    assert ours["ttft_ms"]["mean"] == pytest.approx(theirs["ttft_ms"], rel=0.05)
    assert ours["itl_ms"]["mean"] == pytest.approx(theirs["itl_ms"], rel=0.05)
    assert ours["predicted_reuse"] == pytest.approx(ours["reuse"], rel=0.05)


def test_what_cannot_be_read_is_an_error_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [1]}\n')
    assert cli.replay(path) == 2
    assert "line 1" in capsys.readouterr().err
    assert cli.replay(tmp_path / "nothing.jsonl") == 2
    for timing in ("prefill_ms=1", "prefill_ms=1,decode_ms=x", "prefill_ms=1,decode=2", "prefill_ms=0,decode_ms=1"):
        with pytest.raises(ValueError):
            cli.parse_fixed_timing(timing)


def test_requests_that_never_fit_are_counted_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"timestamp": i, "input_length": 512 * i + 9, "output_length": 3, "hash_ids": []} for i in range(9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.replay(path, fleet="2", kv_blocks=4, json=True) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_requests"], summary["num_failed"]) == (9, 5)
    assert summary["attainment"] == pytest.approx(4 / 9)
