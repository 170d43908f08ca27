"""The check at start finds each way in which a row can come to depend on its batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_model import make_tiny_model
from torch import Tensor

from diptych.engine import weights
from diptych.engine.attention import TorchPagedAttention
from diptych.engine.exactness import EXACT, SAME_PATH
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


def by_number_of_rows(factor: Callable[[int], float]) -> Callable[..., Callable[[Tensor], Tensor]]:
    """Linear layers that are off by a hair for some numbers of rows, as a BLAS with several kernels is."""

    def make(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        linear = make_linear(weight, bias)
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


def test_computing_leaves_torchs_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(folder)
    assert torch.equal(torch.rand(1), expected)
