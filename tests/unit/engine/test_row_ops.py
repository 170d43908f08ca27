"""The C++ row operations against torch's, and row by row against themselves."""

from __future__ import annotations

import pytest
import torch

from diptych.engine.kernels.native import load_kernels
from diptych.engine.kernels.native_row_ops import NativeRowOps
from diptych.engine.row_ops import RowOps, TorchRowOps

EPS = 1e-5


@pytest.fixture(params=["torch", "native", "native, 2 threads"])
def ops(request: pytest.FixtureRequest) -> RowOps:
    if request.param == "torch":
        return TorchRowOps(EPS)
    kernels = load_kernels()
    if kernels is None:
        pytest.skip("there is no C++ compiler")
    return NativeRowOps(kernels, EPS, threads=2 if "2" in request.param else 1)


@pytest.mark.parametrize("size", [3, 16, 64, 100, 576])
def test_add_norm(ops: RowOps, size: int) -> None:
    hidden, delta, weight = torch.randn(7, size), torch.randn(7, size), torch.randn(size)
    added = hidden + delta
    expected = weight * added / (added.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    out = ops.add_norm(hidden, delta, weight)
    assert torch.equal(hidden, added)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ops.add_norm(hidden, None, weight), expected)
    assert torch.equal(hidden, added)
    for row in range(7):
        assert torch.equal(ops.add_norm(added[row : row + 1].clone(), None, weight)[0], out[row])


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("dim", [6, 16, 64, 80])
def test_rotate(ops: RowOps, dim: int, with_norms: bool) -> None:
    heads, angles = torch.randn(5, 6 + 2 * 3, dim), torch.randn(5, 1, dim // 2)
    cos, sin = angles.cos(), angles.sin()
    norms = (torch.randn(dim), torch.randn(dim)) if with_norms else None
    expected = TorchRowOps(EPS).rotate(heads.clone(), (6, 3), cos, sin, norms)
    out = ops.rotate(heads.clone(), (6, 3), cos, sin, norms)
    torch.testing.assert_close(out, expected)
    assert torch.equal(out[:, 9:], heads[:, 9:])  # values stay
    alone = ops.rotate(heads[2:3].clone(), (6, 3), cos[2:3].clone(), sin[2:3].clone(), norms)
    assert torch.equal(alone[0], out[2])


@pytest.mark.parametrize("size", [1, 16, 37, 1536])
def test_silu_mul(ops: RowOps, size: int) -> None:
    gate_up = torch.randn(4, 2 * size) * 5
    gate_up[0, 0], gate_up[1, 0] = 200, -200  # e^200 is more than a float
    gate, up = gate_up.double().chunk(2, dim=-1)
    out = ops.silu_mul(gate_up)
    torch.testing.assert_close(out, (gate * gate.sigmoid() * up).float(), rtol=2e-6, atol=1e-7)
    assert torch.equal(ops.silu_mul(gate_up[3:].clone())[0], out[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    """4,096 equal squares: added one by one in half precision, the sum would stop growing long before the end."""
    hidden, weight = torch.full((2, 4096), 0.75, dtype=dtype), torch.ones(4096, dtype=dtype)
    ops = TorchRowOps(EPS)
    out = ops.add_norm(hidden.clone(), hidden.clone(), weight)
    assert out.dtype is dtype
    torch.testing.assert_close(out.float(), torch.ones(2, 4096), rtol=1e-2, atol=0)
    heads, cos, sin = torch.randn(3, 6, 16).to(dtype), torch.ones(3, 1, 8).to(dtype), torch.zeros(3, 1, 8).to(dtype)
    assert torch.equal(ops.rotate(heads, (2, 2), cos, sin, None), heads)
    assert ops.silu_mul(heads.flatten(1)).dtype is dtype
