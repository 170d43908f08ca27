"""A linear layer over an `Int8Matrix` by the C++ kernel, which reads a quarter of the bytes that float32 takes."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.engine.kernels.native import Int8Weights, Kernels
from diptych.engine.quantization import Int8Matrix


class NativeInt8Linear:
    """A `Linear` (`diptych.engine.linear`) in float32 on CPU, exact for any number of rows.

    Threads divide outputs, which does not change any of their results.
    """

    single = True  # one row is computed as one (see `ModelWeights.takes_single_rows`)

    single = True  # one row is computed as one, see `PackedLinear`

    def __init__(self, kernels: Kernels, matrix: Int8Matrix, bias: Tensor | None, threads: int = 1) -> None:
        self._kernels = kernels
        self._memory = (matrix, bias)  # what `_weights` points to
        self._weights = Int8Weights(
            codes=matrix.codes.data_ptr(),
            scales=matrix.scales.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            out_features=matrix.out_features,
            in_features=matrix.in_features,
        )
        self._threads = threads

    def __call__(self, rows: Tensor) -> Tensor:
        """rows: float32 [num_rows, in_features]. Returns [num_rows, out_features]."""
        if rows.shape[1] != self._weights.in_features:
            raise ValueError(f"rows of {rows.shape[1]} numbers do not fit {self._weights.in_features} inputs")
        rows = rows.contiguous()
        out = torch.empty(len(rows), self._weights.out_features)
        self._kernels.int8_linear(self._weights, rows.data_ptr(), len(rows), out.data_ptr(), self._threads)
        return out
