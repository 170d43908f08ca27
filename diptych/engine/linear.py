"""y = x Wᵀ + b, where a row's result does not depend on how many other rows are computed with it.

On CPU in float32 the weights are packed once for oneDNN. Its kernels give bit-identical rows at any number of rows from
two up, which MKL's (`torch.nn.functional.linear`) do not: with those, a sequence's numbers would depend on its batch
mates. For a single row oneDNN has another kernel, so one row is computed as two. They are also faster. oneDNN promises
none of this, so `exactness.py` checks it at every start. The two operators are the ones torch's own compiler emits
(torch/_inductor/mkldnn_ir.py).

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]  # [num_rows, in_features] -> [num_rows, out_features]


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed linears can be used for this weight on this machine."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch._C._has_mkldnn


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """A linear layer over `weight` [out_features, in_features] and `bias` [out_features]; packs where it can."""
    if not can_pack(weight):
        return lambda rows: functional.linear(rows, weight, bias)

    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    pointwise = torch.ops.mkldnn._linear_pointwise

    def linear(rows: Tensor) -> Tensor:
        padded = rows.repeat(2, 1) if len(rows) == 1 else rows
        out: Tensor = pointwise(padded, packed, bias, "none", [], "")
        return out[: len(rows)]

    return linear
