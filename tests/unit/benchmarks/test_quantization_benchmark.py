"""The benchmark of int8 weights: its arithmetic, and that it measures what it says, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import make_tiny_model

from benchmarks import quantization
from benchmarks.quantization import Rates, Timed, measure_decode, measure_prefill, summary, table
from diptych.engine.torch_runner import TorchRunner
from diptych.model_folder import ModelFolder


def test_ratios_are_formed_inside_a_round() -> None:
    rounds: list[Rates] = [
        {"full": {"decode_b1": 10 * speed}, "int8": {"decode_b1": 20 * speed}} for speed in (1.0, 0.1, 0.5)
    ]
    numbers = summary(rounds)
    assert numbers == {"full_decode_b1_tok_s": 5.0, "int8_decode_b1_tok_s": 10.0, "ratio_decode_b1": 2.0}
    assert json.loads(json.dumps(numbers)) == numbers
    assert table(numbers | {"exact": True}).splitlines()[1:] == [
        "decode_b1              5.0      10.0     2.0",
        "exact: True",
    ]


def test_steps_are_those_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "CONTEXT", 40)
    monkeypatch.setattr("benchmarks.quantization.prompt", lambda length, seed: [3 + seed % 200] * length)
    runner = TorchRunner.load(
        ModelFolder(make_tiny_model(tmp_path / "tiny")),
        kv_cache_bytes=1 << 22,
        block_size=quantization.BLOCK_SIZE,
        device="cpu",
        threads=1,
    )
    engine = Timed(runner, max_context=2048)
    assert measure_prefill({"full": engine}, 20)["full"] > 0
    assert measure_decode({"full": engine}, 3)["full"] > 0
    engine.start(2)
    with pytest.raises(RuntimeError, match="was to decode 3 rows alone, but it computed 2"):
        engine.step(3)
