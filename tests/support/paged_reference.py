"""Sequences with random queries, keys and values, caches to keep them in, and torch's dense attention as the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diptych.engine.attention import PagedAttention
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache

NUM_LAYERS = 3


@dataclass(frozen=True)
class HeadShape:
    heads: int
    kv_heads: int
    dim: int
    block: int = 16

    def cache(self, dtype: torch.dtype, num_blocks: int = 64, num_scratch_blocks: int = 0) -> KVCache:
        entries = (num_blocks + num_scratch_blocks) * NUM_LAYERS * 2 * self.kv_heads * self.block * self.dim
        return KVCache(
            capacity_bytes=entries * dtype.itemsize,
            num_layers=NUM_LAYERS,
            num_kv_heads=self.kv_heads,
            block_size=self.block,
            head_dim=self.dim,
            dtype=dtype,
            device=torch.device("cpu"),
            num_scratch_blocks=num_scratch_blocks,
        )


class PagedSequence:
    """One sequence in `dtype`, and the blocks it is kept in."""

    def __init__(self, shape: HeadShape, length: int, blocks: Sequence[int], dtype: torch.dtype, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.blocks = list(blocks)
        self.query = torch.randn(length, shape.heads, shape.dim, generator=generator).to(dtype)
        self.key = torch.randn(length, shape.kv_heads, shape.dim, generator=generator).to(dtype)
        self.value = torch.randn(length, shape.kv_heads, shape.dim, generator=generator).to(dtype)

    def row(self, start: int, end: int) -> Row:
        return Row(0, [0] * (end - start), start, self.blocks)

    def expected(self) -> Tensor:
        """float32 [length, heads * dim], computed in float64 from the rounded numbers."""
        query, key, value = (each.double().transpose(0, 1)[None] for each in (self.query, self.key, self.value))
        out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1).float()


def run_step(
    attention: PagedAttention, parts: Sequence[tuple[PagedSequence, int, int]], layer: int = 1
) -> list[Tensor]:
    """One step over (sequence, start, end); each part's output as float32."""
    plan = attention.plan([sequence.row(start, end) for sequence, start, end in parts])
    inputs = (
        torch.cat([getattr(sequence, name)[start:end] for sequence, start, end in parts])
        for name in ("query", "key", "value")
    )
    out = attention.run(layer, *inputs, plan).float()
    return list(out.split([end - start for _, start, end in parts]))
