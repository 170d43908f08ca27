"""The gate before quantized weights: what it measures, whom it lets through, and that nobody else gets in."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drive_runner import Driven, decode, generate, prefill, step
from fitted_model import make_fitted_model
from safetensors.numpy import load_file, save_file
from tiny_model import make_tiny_model

from deploy.model_store import DEFAULT_MODEL, ModelError, resolve_model
from diptych.engine import quality, quantization
from diptych.engine.backend import KernelChoice
from diptych.engine.exactness import EXACT
from diptych.engine.kernels.native import load_kernels
from diptych.engine.quality import MAX_PERPLEXITY_RATIO
from diptych.engine.torch_runner import TorchRunner
from diptych.model_folder import ModelFolder

PROMPT = [3 + i * 29 % 256 for i in range(150)]  # longer than an attention tile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the fixed text."""
    base = tmp_path_factory.mktemp("model")
    return make_fitted_model(
        base / "fitted", quality._windows(ModelFolder(make_tiny_model(base / "tiny"))), num_steps=30
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone."""
    path = tmp_path / "quality"
    monkeypatch.setattr("diptych.engine.torch_runner.default_cache", lambda: path)
    return path


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> KernelChoice:
    if request.param == "native" and load_kernels() is None:
        pytest.skip("there is no C++ compiler")
    choice: KernelChoice = request.param
    return choice


def load(folder: Path, kernels: KernelChoice = "auto") -> TorchRunner:
    return TorchRunner.load(
        ModelFolder(folder),
        kv_cache_bytes=1 << 22,
        block_size=8,
        device="cpu",
        threads=1,
        kernels=kernels,
        weights="int8",
    )


def rewrite(folder: Path, name: str, change: float) -> None:
    """Multiply one tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * np.float32(change)
    save_file(tensors, folder / "model.safetensors")


def test_lets_int8_through_and_says_both_figures(
    folder: Path, kernels: KernelChoice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runner = load(folder, kernels)
    assert runner.weights == "int8"
    assert runner.weight_bytes > 0
    assert runner.quality is not None
    assert 1 < runner.quality.ratio <= MAX_PERPLEXITY_RATIO
    assert (
        f"int8 weights: perplexity {runner.quality.quantized:.4f}, full weights {runner.quality.full:.4f}"
        in caplog.text
    )


@pytest.mark.parametrize("levels", [1, 3, 7, 15])
def test_refuses_ruined_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, levels: int) -> None:
    """As of 2, 3, 4 and 5 bits."""
    monkeypatch.setattr(quantization, "LEVELS", levels)
    with pytest.raises(ValueError, match=r"refused.*\d\.\d{4}.*12\.\d{4}.*1\.01 \(MAX_PERPLEXITY_RATIO\).*'full'"):
        load(folder)


@pytest.mark.parametrize("part", ["scales", "codes", "one tile"])
def test_refuses_weights_that_the_kernel_misreads(folder: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    original = quantization.quantize

    def damaged(weight: torch.Tensor) -> quantization.Int8Matrix:
        matrix = original(weight)
        if part == "scales":
            matrix.scales.mul_(1.5)
        elif part == "codes":
            matrix.codes[:] = matrix.codes.flip(1)
        else:
            matrix.codes[0] = 0
        return matrix

    monkeypatch.setattr("diptych.engine.weight_forms.quantize", damaged)
    with pytest.raises(ValueError, match="refused"):
        load(folder)


def test_refuses_what_is_not_a_number(folder: Path, tmp_path: Path) -> None:
    broken = make_tiny_model(tmp_path / "broken")
    rewrite(broken, "lm_head.weight", float("nan"))
    with pytest.raises(ValueError, match=r"refused.*nan"):
        load(broken)


def test_perplexity_of_knowing_nothing_is_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    ignorant = make_tiny_model(tmp_path / "ignorant")
    rewrite(ignorant, "lm_head.weight", 0.0)
    found = load(ignorant).quality
    assert found is not None
    assert (found.quantized, found.full) == pytest.approx((ModelFolder(ignorant).spec.vocab_size,) * 2)


def test_full_weights_are_measured_once(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load(folder)
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["perplexity"] == pytest.approx(12.99, abs=0.01)
    measured: list[int] = []
    perplexity = quality.perplexity
    monkeypatch.setattr(quality, "perplexity", lambda *args: measured.append(1) or perplexity(*args))
    load(folder)
    assert len(measured) == 1  # the quantized ones
    file.write_text("{}")
    load(folder)
    assert len(measured) == 3
    assert "measured again" in caplog.text
    assert json.loads(file.read_text())["perplexity"] > 12


def test_another_model_has_figures_of_its_own(folder: Path, tmp_path: Path, cache: Path) -> None:
    load(folder)
    other = make_tiny_model(tmp_path / "other")
    rewrite(other, "lm_head.weight", 0.0)
    load(other)
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("in the way")
    load(folder)
    assert "measured at every start" in caplog.text


def test_int8_is_exact(folder: Path, kernels: KernelChoice, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runner = load(folder, kernels)
    assert runner.exact
    assert EXACT in caplog.text
    expected = generate(runner, PROMPT, list(range(30)), 12)
    for chunk in (1, 7, 64):
        assert generate(runner, PROMPT, list(range(30, 60)), 12, chunk) == expected


def test_int8_kv_and_draws_do_not_depend_on_batch_mates(folder: Path, kernels: KernelChoice) -> None:
    runner = load(folder, kernels)
    prompts = [PROMPT[: 20 + 13 * i] for i in range(7)]
    alone = [generate(runner, prompt, list(range(30)), 10) for prompt in prompts]
    together = [Driven(prompt, list(range(20 * i, 20 * i + 20))) for i, prompt in enumerate(prompts)]
    step(runner, together)
    decode(runner, together, 10)
    assert [sequence.output for sequence in together] == alone
    again = Driven(prompts[3], list(range(200, 220)))
    prefill(runner, again, chunk=11)
    decode(runner, [again], 10)
    last = len(prompts[3]) // 8  # whole blocks of the prompt
    kv = runner._cache.pool
    assert torch.equal(kv[again.blocks[:last]], kv[together[3].blocks[:last]])


def test_the_text_is_there_and_ordinary() -> None:
    text = quality.TEXT.read_text(encoding="utf-8")
    assert text.isascii()
    assert 1_400 < len(text.split()) < 1_700


@pytest.mark.slow
def test_the_default_model_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M: int8 is within the limit, levels of five bits are not."""
    try:
        model = resolve_model(DEFAULT_MODEL, os.environ, print)
    except ModelError as error:
        pytest.skip(str(error))
    runner = load(model)
    assert runner.exact
    assert runner.weight_bytes < 150e6
    assert runner.quality is not None
    assert 0.99 < runner.quality.ratio <= MAX_PERPLEXITY_RATIO
    monkeypatch.setattr(quantization, "LEVELS", 15)
    with pytest.raises(ValueError, match="refused"):
        load(model)
