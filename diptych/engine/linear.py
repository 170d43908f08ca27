"""y = x Wᵀ + b, where a row's result does not depend on how many other rows are computed with it.

On CPU in float32 the weights are packed once for oneDNN. Its kernels give bit-identical rows at any number of rows from
two up, which MKL's (`torch.nn.functional.linear`) do not: with those, a sequence's numbers would depend on its batch
mates. They are also faster. For a single row oneDNN has another kernel, so one row is computed as two, or by our own
kernel over the same packed weight (`packed_rows.py`). oneDNN promises none of this, so `exactness.py` checks it at
every start. The operators are the ones torch's own compiler emits (torch/_inductor/mkldnn_ir.py).

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from diptych.engine.kernels.native import Kernels
from diptych.engine.packed_rows import MAX_ROWS, PROBE_ROWS, PackedRows, find

Linear = Callable[[Tensor], Tensor]  # [num_rows, in_features] -> [num_rows, out_features]


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed linears can be used for this weight on this machine."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch._C._has_mkldnn


class PackedLinear:
    """A float32 layer packed for oneDNN; a few rows go through our own kernel where that gives the same bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels | None) -> None:
        self._bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._few: PackedRows | None = None
        if kernels is not None:
            probe = torch.randn(PROBE_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0))
            self._few = find(
                kernels, weight, self._packed, bias, self._many(probe), probe, threads=torch.get_num_threads()
            )

    @property
    def single(self) -> bool:
        """One row is computed as one. Otherwise it costs as much as two."""
        return self._few is not None

    def __call__(self, rows: Tensor) -> Tensor:
        if self._few is not None and len(rows) <= MAX_ROWS:
            return self._few(rows.contiguous())
        if len(rows) == 1:
            return self._many(rows.repeat(2, 1))[:1]
        return self._many(rows)

    def _many(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return out


def make_linear(weight: Tensor, bias: Tensor | None = None, kernels: Kernels | None = None) -> Linear:
    """A linear layer over `weight` [out_features, in_features] and `bias` [out_features]; packs where it can."""
    if can_pack(weight):
        return PackedLinear(weight, bias, kernels)
    return lambda rows: functional.linear(rows, weight, bias)
