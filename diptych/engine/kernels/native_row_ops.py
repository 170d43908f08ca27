"""`RowOps` by the C++ kernels: one pass over the memory each."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.engine.kernels.native import Kernels


class NativeRowOps:
    """float32 on CPU; all tensors contiguous."""

    def __init__(self, kernels: Kernels, eps: float, threads: int = 1) -> None:
        self._kernels = kernels
        self._eps = eps
        self._threads = threads

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        self._kernels.add_norm(
            hidden.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            *hidden.shape,
            self._eps,
            self._threads,
        )
        return out

    def rotate(
        self, heads: Tensor, num_rotated: tuple[int, int], cos: Tensor, sin: Tensor, norms: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        query_norm, key_norm = (None, None) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
        self._kernels.rotate(
            heads.data_ptr(),
            heads.stride(0),
            cos.data_ptr(),
            sin.data_ptr(),
            query_norm,
            key_norm,
            len(heads),
            *num_rotated,
            heads.shape[2],
            self._eps,
            self._threads,
        )
        return heads

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        num_rows, both = gate_up.shape
        out = torch.empty(num_rows, both // 2)
        self._kernels.silu_mul(gate_up.data_ptr(), out.data_ptr(), num_rows, both // 2, self._threads)
        return out
