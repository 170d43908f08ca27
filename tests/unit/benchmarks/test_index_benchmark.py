from __future__ import annotations

import json

import pytest

from benchmarks.index import __main__ as command
from benchmarks.index import data, in_process
from benchmarks.index.data import Source
from benchmarks.placement import select_reserve_64_us
from kv_transfer.schema import digest_of, read_keys


def test_the_table_says_what_missed_its_target() -> None:
    text = command.table({"match_160x8_us": 16.0, "apply_blocks_per_s": 2e6, "hash_tokens_per_s": 1e6, "other": 1.0})
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    assert lines["match_160x8_us"].endswith("<= 15  missed")
    assert lines["apply_blocks_per_s"].endswith(">= 1,500,000")
    assert lines["hash_tokens_per_s"].endswith("missed")
    assert "=" not in lines["other"]


def test_the_last_line_has_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = iter([1.0, 5.0, 3.0])
    monkeypatch.setitem(command.PARTS, "match", lambda: iter([("match_160x8_us", next(values))]))
    monkeypatch.setattr("sys.argv", ["index", "--rounds", "3", "--parts", "match"])
    command.main()
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert numbers["match_160x8_us"] == 3.0
    assert numbers["reference_loop_us"] > 0


def test_every_target_is_measured_by_some_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data, in_process):
        monkeypatch.setattr(module, "PLACEMENTS", 64 * 1_024)
    monkeypatch.setattr(in_process, "CALLS", 3)
    monkeypatch.setattr(command, "select_reserve_64_us", lambda: select_reserve_64_us(seconds=0.05))
    parts = (in_process.matching, in_process.applying, in_process.hashing, in_process.memory, command.placing)
    numbers = {name: value for part in parts for name, value in part()}
    through_redis = {"visible_p99_ms", "warm_restart_1m_s"}
    assert set(command.AT_MOST) | set(command.AT_LEAST) <= set(numbers) | through_redis
    assert all(value > 0 for value in numbers.values())


def test_logs_carry_true_digests() -> None:
    source = Source()
    batches = [in_process._decode(each) for each in source.log(3, events=2, blocks=4)]
    keys = read_keys(b"".join(event.stored for batch in batches for event in batch.events))
    assert batches[-1].digest == digest_of(keys)
    assert keys.size == 24
