"""Matrices as bytes with scales: what is lost, and that nothing else is."""

from __future__ import annotations

import pytest
import torch

from diptych.engine.quantization import GROUP, LEVELS, TILE, Int8Embedding, dequantize, quantize

SHAPES = [(64, 64), (100, 130), (3, 200), (129, 5), (1, 1)]  # out, in: whole tiles and groups, and not


def matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_is_off_by_at_most_half_a_level_of_its_group(shape: tuple[int, int]) -> None:
    weight = matrix(shape)
    found = dequantize(quantize(weight))
    assert found.shape == weight.shape
    for begin in range(0, shape[1], GROUP):
        group = weight[:, begin : begin + GROUP]
        level = group.abs().amax(dim=1, keepdim=True) / LEVELS
        assert ((found[:, begin : begin + GROUP] - group).abs() <= 0.5001 * level).all()


def test_a_large_weight_costs_its_own_group_only() -> None:
    weight = matrix((2, 2 * GROUP))
    calm = dequantize(quantize(weight))
    weight[0, 3] = 1_000.0
    found = dequantize(quantize(weight))
    assert found[0, 3] == pytest.approx(1_000.0)
    assert torch.equal(found[0, GROUP:], calm[0, GROUP:])
    assert torch.equal(found[1], calm[1])


def test_zeros_stay_zeros() -> None:
    weight = matrix((3, 2 * GROUP))
    weight[1, :GROUP] = 0
    found = dequantize(quantize(weight))
    assert not found[1, :GROUP].any()
    assert found.isfinite().all()


def test_numbers_that_are_levels_are_kept_exactly() -> None:
    weight = torch.arange(-LEVELS, LEVELS + 1, dtype=torch.float32).roll(7).view(1, -1) * 0.25
    weight[0, ::GROUP] = LEVELS * 0.25  # every group reaches as far
    assert torch.equal(dequantize(quantize(weight)), weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_embedding_looks_up_the_matrix_rows(shape: tuple[int, int]) -> None:
    table = quantize(matrix(shape))
    tokens = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0])
    assert torch.equal(Int8Embedding(table)[tokens], dequantize(table)[tokens])


def test_takes_a_byte_a_weight_and_four_a_group() -> None:
    weight = matrix((2 * TILE, 3 * GROUP))
    assert quantize(weight).num_bytes == weight.numel() * (1 + 4 / GROUP)
