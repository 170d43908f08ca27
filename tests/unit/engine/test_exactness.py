"""The check at start finds each way in which a row can come to depend on its batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drive_runner import generate
from tiny_model import make_tiny_model
from torch import Tensor

from diptych.engine import weights
from diptych.engine.attention import TorchPagedAttention
from diptych.engine.exactness import EXACT, SAME_PATH, ProbeParts, rows_are_exact
from diptych.engine.linear import make_linear
from diptych.engine.torch_runner import TorchRunner
from diptych.model_folder import ModelFolder


def load(folder: Path) -> TorchRunner:
    opened = ModelFolder(folder)
    return TorchRunner.load(opened, kv_cache_bytes=1 << 20, block_size=16, device="cpu", threads=1, kernels="torch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def test_says_that_rows_are_exact(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert load(folder).exact
    assert EXACT in caplog.text
    assert "torch paged attention" in caplog.text


def test_a_context_shorter_than_the_probe(tmp_path: Path) -> None:
    assert load(make_tiny_model(tmp_path / "short", max_context=32)).exact


def by_number_of_rows(factor: Callable[[int], float]) -> Callable[..., Callable[[Tensor], Tensor]]:
    """Linear layers that are off by a hair for some numbers of rows, as a BLAS with several kernels is."""

    def make(weight: Tensor, bias: Tensor | None = None, **more: Any) -> Callable[[Tensor], Tensor]:
        linear = make_linear(weight, bias, **more)
        return lambda rows: linear(rows) * factor(len(rows))

    return make


@pytest.mark.parametrize(
    "factor",
    [lambda rows: 1 + 1e-6 * (rows <= 2), lambda rows: 1 + 1e-6 * (rows >= 64), lambda rows: 1 + 1e-6 * (rows == 4)],
    ids=["one row differs", "many rows differ", "four rows differ"],
)
def test_finds_linears_that_depend_on_the_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, factor: Callable[[int], float]
) -> None:
    monkeypatch.setattr(weights, "make_linear", by_number_of_rows(factor))
    runner = load(folder)
    assert not runner.exact
    assert SAME_PATH in caplog.text


def test_finds_attention_that_depends_on_the_block_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TorchPagedAttention.run

    def other(self: TorchPagedAttention, layer: int, query: Tensor, key: Tensor, value: Tensor, plan: object) -> Tensor:
        out = run(self, layer, query, key, value, plan)  # type: ignore[arg-type]
        first_slot = int(plan.slots.min())  # type: ignore[attr-defined]
        return out * (1 + 1e-6 * (first_slot == 0))

    monkeypatch.setattr(TorchPagedAttention, "run", other)
    assert not load(folder).exact


def test_on_a_gpu_nothing_is_asked_and_nothing_promised(folder: Path) -> None:
    def refuse(_: object) -> Any:
        raise AssertionError("a probe that happens to agree proves nothing there")

    gpu = torch.device("cuda")
    assert not rows_are_exact(ProbeParts(ModelFolder(folder).spec, 16, torch.bfloat16, gpu, refuse, refuse))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_cpu_computes_and_is_asked(
    folder: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    opened = ModelFolder(folder)
    runner = TorchRunner.load(
        opened, kv_cache_bytes=1 << 20, block_size=16, device="cpu", dtype=dtype, threads=1, kernels="auto"
    )
    assert runner.dtype == dtype
    assert runner.block_bytes == opened.spec.block_bytes(16, 2)
    assert (EXACT if runner.exact else SAME_PATH) in caplog.text
    expected = generate(load(folder), list(range(3, 40)), list(range(8)), 6)
    assert generate(runner, list(range(3, 40)), list(range(8)), 6)[0] == expected[0]


def test_computing_leaves_torchs_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(folder)
    assert torch.equal(torch.rand(1), expected)
