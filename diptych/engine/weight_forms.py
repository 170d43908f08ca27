"""In which form weights are kept: as numbers of the model's dtype, or as bytes with scales.

A form makes the model's parts from the tensors in its files and counts the bytes they take.

Knows nothing about files or how parts are put together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from diptych.engine.kernels.native import Kernels
from diptych.engine.kernels.native_int8 import NativeInt8Linear
from diptych.engine.linear import Linear, make_linear
from diptych.engine.quantization import Int8Embedding, Int8Matrix, dequantize, quantize

log = logging.getLogger(__name__)


class Embedding(Protocol):
    def __getitem__(self, tokens: Tensor, /) -> Tensor:
        """tokens: int64 [num_tokens]. Returns [num_tokens, hidden_size]."""
        ...


class MatrixForm(Protocol):
    num_bytes: int  # of everything made so far

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """weight: [out_features, in_features]; bias: [out_features]."""
        ...

    def embedding(self, table: Tensor) -> Embedding: ...

    def tied(self, table: Tensor) -> tuple[Embedding, Linear]:
        """An embedding and a head from one table [vocab_size, hidden_size]."""
        ...


class FullForm:
    """Numbers of the model's dtype. A tied table is kept twice where linears are packed."""

    def __init__(self, make: Callable[[Tensor, Tensor | None], Linear] = make_linear) -> None:
        self.num_bytes = 0
        self._make = make

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        self.num_bytes += weight.nbytes
        return self._make(weight, bias)

    def embedding(self, table: Tensor) -> Embedding:
        self.num_bytes += table.nbytes
        return table

    def tied(self, table: Tensor) -> tuple[Embedding, Linear]:
        return self.embedding(table), self.linear(table, None)


class Int8Form:
    """Bytes with scales, for float32 on CPU; a tied table is kept once.

    Without kernels the same weights are unpacked into float32 linears: as exact, as fast as those and no faster, and
    only the embedding is smaller.
    """

    def __init__(self, kernels: Kernels | None, threads: int) -> None:
        self.num_bytes = 0
        self._kernels = kernels
        self._threads = threads
        if kernels is None:
            log.warning(
                "int8 weights without the C++ kernels: unpacked to float32, which saves neither time nor memory"
            )

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return self._linear(quantize(weight), bias)

    def embedding(self, table: Tensor) -> Embedding:
        matrix = quantize(table)
        self.num_bytes += matrix.num_bytes
        return Int8Embedding(matrix)

    def tied(self, table: Tensor) -> tuple[Embedding, Linear]:
        matrix = quantize(table)
        if self._kernels is None:
            self.num_bytes += matrix.num_bytes
        return Int8Embedding(matrix), self._linear(matrix, None)

    def _linear(self, matrix: Int8Matrix, bias: Tensor | None) -> Linear:
        if self._kernels is None:
            weight = dequantize(matrix)
            self.num_bytes += weight.nbytes
            return make_linear(weight, bias)
        self.num_bytes += matrix.num_bytes
        return NativeInt8Linear(self._kernels, matrix, bias, self._threads)
