"""A few rows from oneDNN's packed memory: the same bits as oneDNN's own, or not used at all."""

from __future__ import annotations

import pytest
import torch

from diptych.engine import packed_rows
from diptych.engine.kernels.native import Kernels, load_kernels
from diptych.engine.linear import PackedLinear, can_pack, make_linear
from diptych.engine.packed_rows import MAX_ROWS, PROBE_ROWS, find


@pytest.fixture
def kernels() -> Kernels:
    loaded = load_kernels()
    if loaded is None or not can_pack(torch.empty(1, 1)):
        pytest.skip("neither is there without the C++ kernels and oneDNN")
    return loaded


def weight_of(out_features: int, in_features: int) -> torch.Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(1)) / in_features**0.5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(64, 64), (100, 37), (1, 576), (960, 576), (576, 1536), (49, 2048), (63, 511), (65, 513)],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_same_bits_for_any_number_of_rows(
    kernels: Kernels, out_features: int, in_features: int, with_bias: bool, threads: int
) -> None:
    weight = weight_of(out_features, in_features)
    bias = torch.randn(out_features) if with_bias else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = make_linear(weight, bias, kernels), make_linear(weight, bias)
        rows = torch.randn(3 * MAX_ROWS, in_features)
        expected = theirs(rows)
        for count in (1, 2, 3, 5, MAX_ROWS, MAX_ROWS + 1, 3 * MAX_ROWS):
            assert torch.equal(ours(rows[:count]), expected[:count])
    finally:
        torch.set_num_threads(before)


def test_one_row_is_computed_as_one_where_the_packing_is_known(kernels: Kernels) -> None:
    linear = make_linear(weight_of(96, 64), None, kernels)
    assert isinstance(linear, PackedLinear)
    if not linear.single:
        pytest.skip("oneDNN packs or adds in another way on this machine; its own kernel is used")
    assert torch.equal(linear(torch.ones(1, 64)), linear(torch.ones(9, 64))[:1])


def test_memory_that_holds_something_else_is_not_used(kernels: Kernels) -> None:
    weight = weight_of(96, 64)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    probe = torch.randn(PROBE_ROWS, 64)
    other = weight.clone()
    other[95, 63] += 1.0
    assert find(kernels, other, packed, None, probe @ other.T, probe, threads=1) is None
    assert find(kernels, weight_of(96, 128), packed, None, probe, torch.randn(PROBE_ROWS, 128), threads=1) is None


def test_another_order_of_adding_is_not_used(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, probe = weight_of(96, 1536), torch.randn(PROBE_ROWS, 1536)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    expected = make_linear(weight)(probe)
    if find(kernels, weight, packed, None, expected, probe, threads=1) is None:
        pytest.skip("oneDNN packs or adds in another way on this machine")
    assert find(kernels, weight, packed, None, expected + 1e-3, probe, threads=1) is None
    monkeypatch.setattr(packed_rows, "CHUNKS", (64,))
    assert find(kernels, weight, packed, None, expected, probe, threads=1) is None
