"""Causal attention over paged keys and values, behind one small interface.

`TorchPagedAttention` is the reference and runs on any device. `kernels/native_attention.py` reads blocks in place on
CPU, `flashinfer_attention.py` on a GPU, and `sdpa_attention.py` is what a GPU uses without a library; each makes its
own kind of plan from the same rows, and `attention_choice.py` chooses.

What every implementation promises: no block outside a row's own table is ever read. The two for CPU promise more: a
token's result depends on its own sequence alone, not on batch mates, not on where a chunk was cut, not on which blocks
hold the keys. On a GPU that would cost too much, and so would it in the matrix products around it (`exactness.py`).

Knows nothing about weights, sampling or requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache

TILE_TOKENS = 128  # keys that one small matrix product covers
QUERIES_PER_CHUNK = 32  # of a long row; bounds the memory for scores


class PagedAttention(Protocol):
    """Stores and reads KV for the flattened rows of a step. The plan is opaque to callers.

    Attributes:
        name: for people
    """

    name: str

    def plan(self, rows: Sequence[Row]) -> Any:
        """Everything about a step that is the same in all layers."""
        ...

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, plan: Any) -> Tensor:
        """Store the step's keys and values, then attend.

        query: [num_tokens, num_heads, head_dim]; key, value: [num_tokens, num_kv_heads, head_dim]; query and key
        rotated, all in the order of the plan's rows and each token's heads contiguous. Returns [num_tokens, num_heads *
        head_dim]. There may be more tokens than in the plan's rows, behind them; their outputs are 0.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Segment:
    """Queries that are computed together: either one query each of several rows, or several queries of one row."""

    tokens: Tensor  # int64 [num_rows, num_queries]: index among the step's tokens
    gather: Tensor  # int64 [2, num_rows, num_tiles, num_kv_heads, blocks_per_tile]: rows of the cache for layer 0
    num_tiles: int
    hidden: Tensor  # bool [num_rows, num_tiles, 1, num_queries, 1, tile]: the key is in the query's future


@dataclass(frozen=True, slots=True)
class _Plan:
    slots: Tensor  # where the step's KV goes, see KVCache.slots
    segments: list[_Segment]


class TorchPagedAttention:
    """In torch alone: gathers keys and values by tiles, then runs one matrix product of the same shape per (query, KV
    head, tile).

    The same shape is what makes results independent of the batch: a BLAS picks its kernel, and with it the order of
    additions, by the shape of one product. So neither the number of queries nor the length of the context may be part
    of it. Tiles start at multiples of `TILE_TOKENS`, are reduced one by one in order, and keys in a query's future
    weigh exactly 0, so that tiles beyond the context change nothing.
    """

    name = "torch paged attention"

    def __init__(self, cache: KVCache, num_heads: int) -> None:
        self._cache = cache
        self._group = num_heads // cache.num_kv_heads  # query heads that share a KV head
        self._scale = 1 / math.sqrt(cache.head_dim)
        self._blocks_per_tile = max(1, TILE_TOKENS // cache.block_size)
        self._tile = self._blocks_per_tile * cache.block_size

    def plan(self, rows: Sequence[Row]) -> _Plan:
        singles: list[tuple[int, Row]] = []
        segments: list[_Segment] = []
        first_token = 0
        for row in rows:
            if len(row.tokens) == 1:
                singles.append((first_token, row))
            else:
                segments.extend(self._chunks(first_token, row))
            first_token += len(row.tokens)

        # Rows of like length go together, since each is padded to the longest.
        singles.sort(key=lambda single: single[1].start)
        for _, group in groupby(singles, key=lambda single: self._num_tiles(single[1].start + 1).bit_length()):
            segments.append(self._together(list(group)))
        return _Plan(self._slots(rows), segments)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, plan: _Plan) -> Tensor:
        num_stored = len(plan.slots)
        self._cache.write(layer, plan.slots, torch.stack((key[:num_stored], value[:num_stored]), dim=1))
        num_tokens, num_heads, head_dim = query.shape
        grouped = (query.float() * self._scale).view(num_tokens, -1, self._group, head_dim)
        out = torch.zeros_like(grouped)
        for segment in plan.segments:
            # [num_rows, num_queries, kv_heads, group, head_dim], and back
            out[segment.tokens] = self._attend(layer, grouped[segment.tokens], segment)
        return out.view(num_tokens, num_heads * head_dim).to(query.dtype)

    def _attend(self, layer: int, query: Tensor, segment: _Segment) -> Tensor:
        num_rows, _, num_heads, _, head_dim = query.shape
        cached = self._cache.rows.index_select(0, (segment.gather + layer * 2 * num_heads).flatten())
        keys, values = cached.view(2, num_rows, segment.num_tiles, num_heads, self._tile, head_dim).float()
        # [num_rows, num_tiles, kv_heads, num_queries, group, ...] from here on
        by_tile = query.transpose(1, 2).unsqueeze(1).expand(-1, segment.num_tiles, -1, -1, -1, -1)
        scores = _products(by_tile, keys.transpose(-1, -2)).masked_fill_(segment.hidden, -math.inf)

        peak = scores.amax(dim=(1, 5), keepdim=True)
        weights = scores.sub_(peak).exp_()
        total = _sum_tiles(weights.sum(dim=-1, keepdim=True))
        return _sum_tiles(_products(weights, values)).div_(total).transpose(1, 2)

    def _chunks(self, first_token: int, row: Row) -> list[_Segment]:
        count = len(row.tokens)
        cuts = range(0, count, QUERIES_PER_CHUNK)
        return [self._segment([first_token], [row], begin, min(begin + QUERIES_PER_CHUNK, count)) for begin in cuts]

    def _together(self, singles: list[tuple[int, Row]]) -> _Segment:
        return self._segment([token for token, _ in singles], [row for _, row in singles], 0, 1)

    def _segment(self, first_tokens: list[int], rows: list[Row], begin: int, end: int) -> _Segment:
        """Queries begin..end of each of `rows`."""
        device = self._cache.device
        num_tiles = max(self._num_tiles(row.start + end) for row in rows)
        queries = torch.arange(begin, end)
        starts = torch.tensor([row.start for row in rows])
        positions = (starts[:, None] + queries)[:, None, None, :, None, None]
        keys = torch.arange(num_tiles * self._tile).view(num_tiles, 1, 1, 1, self._tile)
        return _Segment(
            tokens=(torch.tensor(first_tokens)[:, None] + queries).to(device),
            gather=self._gather_index(rows, end, num_tiles).to(device),
            num_tiles=num_tiles,
            hidden=(keys > positions).to(device),
        )

    def _gather_index(self, rows: list[Row], end: int, num_tiles: int) -> Tensor:
        """Which cache rows hold each tile."""
        table = padded_table(rows, end, num_tiles * self._blocks_per_tile, self._cache.block_size)
        heads = torch.arange(self._cache.num_kv_heads)[:, None]
        keys = self._cache.row_of(table).view(len(rows), num_tiles, 1, -1) + heads
        return torch.stack((keys, keys + self._cache.num_kv_heads))

    def _slots(self, rows: Sequence[Row]) -> Tensor:
        blocks, offsets = token_places(rows, self._cache.block_size)
        return self._cache.slots(blocks.to(self._cache.device), offsets.to(self._cache.device))

    def _num_tiles(self, num_tokens: int) -> int:
        return -(-num_tokens // self._tile)


def token_places(rows: Sequence[Row], block_size: int) -> tuple[Tensor, Tensor]:
    """The block of each of the rows' tokens and its offset within it: int64 [num_tokens], on the host."""
    positions = [(row, position) for row in rows for position in range(row.start, row.start + len(row.tokens))]
    blocks = torch.tensor([row.blocks[position // block_size] for row, position in positions])
    return blocks, torch.tensor([position % block_size for _, position in positions])


def padded_table(rows: Sequence[Row], end: int, width: int, block_size: int) -> Tensor:
    """Block tables for the first `end` tokens of each row: int64 [num_rows, width], on the host.

    Padding repeats a row's own first block: hidden keys weigh 0, but 0 times a NaN of another row's would be NaN.
    """
    used = [list(row.blocks[: -(-(row.start + end) // block_size)]) for row in rows]
    return torch.tensor([blocks + blocks[:1] * (width - len(blocks)) for blocks in used])


def _products(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` as one product of the same shape per query.

    left: [rows, tiles, heads, queries, group, k]; right: [rows, tiles, heads, k, n].
    Returns [rows, tiles, heads, queries, group, n].
    """
    rows, tiles, heads, queries, group, inner = left.shape
    if queries == 1:
        flat = torch.bmm(left.reshape(-1, group, inner), right.flatten(0, 2))
        return flat.view(rows, tiles, heads, 1, group, -1)

    # All queries of a row share `right`: a batch with stride 0, which torch takes without copying it.
    left, right = left.flatten(0, 2), right.flatten(0, 2)
    out = left.new_empty(len(left), queries, group, right.shape[-1])
    for index in range(len(left)):
        torch.bmm(left[index], right[index].expand(queries, -1, -1), out=out[index])
    return out.view(rows, tiles, heads, queries, group, -1)


def _sum_tiles(parts: Tensor) -> Tensor:
    """Add [rows, tiles, ...] over tiles, in order. (`Tensor.sum` picks an order by the number of tiles.)"""
    total = parts[:, 0].clone()
    for tile in range(1, parts.shape[1]):
        total += parts[:, tile]
    return total
