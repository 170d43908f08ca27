"""The int8 kernel against plain arithmetic, and the same row, to the bit, whatever the number of rows and threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.engine.kernels.native import Kernels, load_kernels
from diptych.engine.kernels.native_int8 import NativeInt8Linear
from diptych.engine.quantization import dequantize, quantize

SHAPES = [(960, 576), (576, 1536), (3072, 576), (100, 130), (7, 5), (1, 64), (65, 1)]  # out, in
NUM_ROWS = (*range(1, 21), 33, 64, 191, 192, 193, 300)  # around each change of path: 6, 18 and 192 rows and multiples


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    if (found := load_kernels()) is None:
        pytest.skip("there is no C++ compiler")
    return found


def case(shape: tuple[int, int], num_rows: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and rows."""
    generator = torch.Generator().manual_seed(shape[0])
    sizes = (shape, (shape[0],), (num_rows, shape[1]))
    weight, bias, rows = (torch.randn(size, generator=generator) for size in sizes)
    return weight, bias, rows


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_product_with_the_dequantized_matrix(kernels: Kernels, shape: tuple[int, int], with_bias: bool) -> None:
    weight, bias, rows = case(shape)
    matrix = quantize(weight)
    expected = rows.double() @ dequantize(matrix).double().T + (bias.double() if with_bias else 0)
    found = NativeInt8Linear(kernels, matrix, bias if with_bias else None)(rows)
    scale = (rows.abs() @ weight.abs().T).max()  # of the sums' terms: rounding is relative to those
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=float(scale) * 2e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_do_not_depend_on_their_number(kernels: Kernels, shape: tuple[int, int]) -> None:
    weight, bias, rows = case(shape)
    linear = NativeInt8Linear(kernels, quantize(weight), bias)
    whole = linear(rows)
    for count in NUM_ROWS:
        assert torch.equal(linear(rows[:count].clone()), whole[:count]), count
        assert torch.equal(linear(rows[-count:].clone()), whole[-count:]), count


@pytest.mark.parametrize("num_rows", [1, 7, 200])
def test_threads_do_not_change_results(kernels: Kernels, num_rows: int) -> None:
    weight, bias, rows = case((1000, 300), num_rows)
    matrix = quantize(weight)
    alone = NativeInt8Linear(kernels, matrix, bias)(rows)
    assert torch.equal(NativeInt8Linear(kernels, matrix, bias, threads=3)(rows), alone)


def test_writes_nothing_but_its_outputs(kernels: Kernels) -> None:
    """Outputs of the last tile end before the tile does, and the next row begins there."""
    weight, _, rows = case((70, 64), 5)
    matrix = quantize(weight)
    linear = NativeInt8Linear(kernels, matrix, None)
    memory = torch.full((7, 70), 123.0)
    kernels.int8_linear(linear._weights, rows.data_ptr(), 5, memory[1:6].data_ptr(), 1)
    assert (memory[0] == 123).all()
    assert (memory[6] == 123).all()
    assert torch.equal(memory[1:6], linear(rows))


def test_rows_need_not_be_contiguous(kernels: Kernels) -> None:
    weight, _, rows = case((70, 64), 8)
    linear = NativeInt8Linear(kernels, quantize(weight), None)
    assert torch.equal(linear(rows[::2]), linear(rows)[::2])


def test_refuses_rows_of_another_size(kernels: Kernels) -> None:
    linear = NativeInt8Linear(kernels, quantize(case((70, 64))[0]), None)
    with pytest.raises(ValueError, match="65 numbers do not fit 64 inputs"):
        linear(torch.zeros(2, 65))
