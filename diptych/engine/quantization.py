"""Matrices as signed bytes: what is kept, how it is made, and what it stands for.

    weight[o][i]  =  scale[o][i // GROUP] * code[o][i]        code in -LEVELS .. LEVELS, scale in float32

Symmetric, rounded to nearest, each scale such that the largest weight of its group becomes LEVELS: 8.5 bits a weight.
Groups, because one scale for a whole row was measured to cost SmolLM2-135M 0.8 % of perplexity and groups of 64
0.1 % (docs/decisions/013). Activations are never quantized: that is what ruins small models.

Knows nothing about models or how products are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 127
GROUP = 64  # inputs that share a scale; as in kernels/int8.cpp
TILE = 64  # outputs whose codes lie side by side; as in kernels/int8.cpp


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """A matrix [out_features, in_features] in the order in which the kernel reads it; outputs are padded with zeros."""

    codes: Tensor  # int8 [num_tiles, in_features, TILE]
    scales: Tensor  # float32 [num_tiles, num_groups, TILE]
    out_features: int

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def rows(self, outputs: Tensor) -> Tensor:
        """Some rows of the matrix as numbers. outputs: int64 [n]. Returns float32 [n, in_features]."""
        tiles, lanes = outputs // TILE, outputs % TILE
        scales = self.scales[tiles, :, lanes].repeat_interleave(GROUP, dim=1)[:, : self.in_features]
        return self.codes[tiles, :, lanes] * scales


class Int8Embedding:
    """`embedding[tokens]` over a quantized table [vocab_size, hidden_size]."""

    def __init__(self, table: Int8Matrix) -> None:
        self._table = table

    def __getitem__(self, tokens: Tensor) -> Tensor:
        return self._table.rows(tokens)


def quantize(weight: Tensor) -> Int8Matrix:
    """weight: float32 [out_features, in_features] on CPU."""
    out_features, in_features = weight.shape
    num_tiles, num_groups = -(-out_features // TILE), -(-in_features // GROUP)
    missing = num_groups * GROUP - in_features, num_tiles * TILE - out_features
    groups = functional.pad(weight, (0, missing[0], 0, missing[1])).view(num_tiles, TILE, num_groups, GROUP)
    scales = groups.abs().amax(dim=-1) / LEVELS  # [num_tiles, TILE, num_groups]
    divisors = torch.where(scales == 0, 1.0, scales)  # a group of zeros
    codes = (groups / divisors.unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS).to(torch.int8).flatten(2)
    return Int8Matrix(
        codes[:, :, :in_features].transpose(1, 2).contiguous(), scales.transpose(1, 2).contiguous(), out_features
    )


def dequantize(matrix: Int8Matrix) -> Tensor:
    """The matrix as numbers: float32 [out_features, in_features]."""
    return matrix.rows(torch.arange(matrix.out_features))
