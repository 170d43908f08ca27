"""What this machine can do with the given threads: the rates that shares are taken of.

The best of several library routes counts, not the one the engine happens to use: a share must not look good because
one library is slow here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from diptych.engine.linear import make_linear

GEMM_SIZE = 1024
GEMV_ROWS, GEMV_COLUMNS = 32_768, 2_048  # 256 MiB: more than any cache here


class Machine:
    """Large matrices, made once."""

    def __init__(self) -> None:
        square = torch.randn(GEMM_SIZE, GEMM_SIZE)
        tall, row = torch.randn(GEMV_ROWS, GEMV_COLUMNS), torch.randn(1, GEMV_COLUMNS)
        packed, packed_tall = make_linear(square), make_linear(tall)
        self._products: tuple[Callable[[], object], ...] = (lambda: square @ square, lambda: packed(square))
        self._vectors: tuple[Callable[[], object], ...] = (
            lambda: torch.mv(tall, row[0]),
            lambda: functional.linear(row, tall),
            lambda: packed_tall(row),
        )

    def sgemm_flops(self) -> float:
        """Floating-point operations a second of a large float32 matrix product."""
        return 2 * GEMM_SIZE**3 / min(_seconds(product, 4) for product in self._products)

    def gemv_bytes(self) -> float:
        """Bytes of weights a second that a large float32 matrix-vector product reads."""
        return 4 * GEMV_ROWS * GEMV_COLUMNS / min(_seconds(product, 1) for product in self._vectors)


def _seconds(function: Callable[[], object], times: int) -> float:
    """The best of three; one call before, for warmth."""
    function()
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(times):
            function()
        best = min(best, (time.perf_counter() - began) / times)
    return best
