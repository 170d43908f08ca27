"""The arithmetic of a layer between its matrix products, behind one small interface, and its form in torch.

Every operation treats rows on their own: what a row becomes does not depend on the others.

Knows nothing about attention, weights' origin or requests.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from diptych.engine.rope import rotate


class RowOps(Protocol):
    """float32 sums whatever the rows' dtype. `eps` belongs to the RMS norm (https://arxiv.org/abs/1910.07467)."""

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        """Add `delta` to `hidden` in place and return its RMS norm. All [num_rows, size], but weight [size]."""
        ...

    def rotate(
        self, heads: Tensor, num_rotated: tuple[int, int], cos: Tensor, sin: Tensor, norms: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Norm (if asked for) and rotate query and key heads; may be in place.

        heads: [num_rows, num_heads + 2 * num_kv_heads, head_dim], queries, keys, values; num_rotated: the numbers of
        query and of key heads; cos, sin: [num_rows, 1, head_dim / 2]; norms: weights for queries and for keys, each
        [head_dim].
        """
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up. gate_up: [num_rows, 2 * size], gate first. Returns [num_rows, size]."""
        ...


class TorchRowOps:
    """In torch, on any device; the reference for the others."""

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def add_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        if delta is not None:
            hidden += delta
        return self._norm(hidden, weight)

    def rotate(
        self, heads: Tensor, num_rotated: tuple[int, int], cos: Tensor, sin: Tensor, norms: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        query, key, value = torch.split(heads, [*num_rotated, heads.shape[1] - sum(num_rotated)], dim=1)
        if norms is not None:
            query, key = self._norm(query, norms[0]), self._norm(key, norms[1])
        return torch.cat((rotate(query, cos, sin), rotate(key, cos, sin), value), dim=1)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """In float32 and rounded where transformers rounds."""
        wide = rows.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        return weight * (wide * scale).to(rows.dtype)
