"""Whether an attention that came from elsewhere computes what torch's does, here and now.

A kernel library is somebody else's code, often compiled at first use on the user's machine, for a GPU nobody here may
have seen. So it computes a few short sequences on this device before it is relied on: whole, in chunks and token by
token, in scattered blocks of a pool with several layers. What a wrong stride, mask or block table would do is far
outside the tolerance.

Knows nothing about the library or the model beyond its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diptych.engine.attention import PagedAttention
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache

TOLERANCE = 0.05  # of outputs of order 1; half precision rounds to 2^-8 or better
LAYER, NUM_LAYERS = 1, 3  # neither the first nor the last, so that a forgotten step between layers shows
BLOCK_SIZE = 16
STEPS = (((0, 37), (0, 5)), ((37, 90), (5, 6)), ((90, 91), (6, 7)))  # each step: (begin, end) for each sequence

Make = Callable[[KVCache], PagedAttention]


def largest_difference(
    candidate: Make,
    reference: Make,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """The largest absolute difference of any output; inf where one is not a number.

    Keys and values are drawn from a normal distribution, queries from one three times as wide, so that single keys
    weigh much. Torch's own generators are left alone.
    """

    def outputs(make: Make) -> Tensor:
        cache = _small_cache(num_kv_heads, head_dim, dtype, device)
        return torch.cat(_outputs(make(cache), cache, num_heads))

    difference = (outputs(candidate) - outputs(reference)).abs().max().item()
    return math.inf if math.isnan(difference) else difference


def _small_cache(num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    num_blocks = sum(len(table) for table in _tables())
    return KVCache(
        capacity_bytes=num_blocks * NUM_LAYERS * 2 * num_kv_heads * BLOCK_SIZE * head_dim * dtype.itemsize,
        num_layers=NUM_LAYERS,
        num_kv_heads=num_kv_heads,
        block_size=BLOCK_SIZE,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
    )


def _tables() -> list[list[int]]:
    """Of each sequence: not in order, and interleaved with the other's."""
    counts = [-(-end // BLOCK_SIZE) for _, end in STEPS[-1]]
    blocks = iter(reversed(range(sum(counts))))
    tables: list[list[int]] = [[] for _ in counts]
    while any(len(table) < count for table, count in zip(tables, counts, strict=True)):
        for table, count in zip(tables, counts, strict=True):
            if len(table) < count:
                table.append(next(blocks))
    return tables


def _outputs(attention: PagedAttention, cache: KVCache, num_heads: int) -> list[Tensor]:
    """float32 [num_tokens, num_heads * head_dim] of each step."""
    outputs = []
    for index, step in enumerate(STEPS):
        spans = zip(step, _tables(), strict=True)
        rows = [Row(-1, [0] * (end - begin), begin, table) for (begin, end), table in spans]
        plan = attention.plan(rows)
        outputs.append(attention.run(LAYER, *_draw(index, rows, cache, num_heads), plan).float())
    return outputs


def _draw(seed: int, rows: Sequence[Row], cache: KVCache, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value for a step. Drawn on the host: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(len(row.tokens) for row in rows)

    def normal(heads: int, width: float = 1.0) -> Tensor:
        drawn = torch.randn(count, heads, cache.head_dim, generator=generator) * width
        return drawn.to(cache.device, cache.pool.dtype)

    return normal(num_heads, 3.0), normal(cache.num_kv_heads), normal(cache.num_kv_heads)
