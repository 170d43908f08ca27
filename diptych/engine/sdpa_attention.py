"""`PagedAttention` by torch's own attention, on any device and in any dtype: what a GPU uses without a kernel library.

Keys and values are gathered out of their blocks into one padded piece per group of rows, then
`scaled_dot_product_attention` picks its kernel. That copy is what a library with paged kernels saves. The query heads
that share a KV head are laid out as further queries of it, so that keys are not repeated and every kernel of torch's
can be picked: those that take a mask do not take grouped heads
(https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html).

Results depend on batch mates in the last bits, because the kernels depend on shapes; see `attention.py` for the one
that does not.

Knows nothing about weights, sampling or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diptych.engine.attention import padded_table, token_places
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache

MASK_ELEMENTS = 1 << 25  # of one call: 64 MiB in half precision, since torch makes numbers of it


@dataclass(frozen=True, slots=True)
class _Segment:
    """Queries that are computed together: either one query each of several rows, or several queries of one row."""

    tokens: Tensor  # int64 [num_rows, num_queries]: index among the step's tokens
    gather: Tensor  # int64 [2, num_rows, num_kv_heads, width]: rows of the cache for layer 0
    visible: Tensor  # bool [num_rows, 1, num_queries * group, width * block_size]: the key is not in the future


@dataclass(frozen=True, slots=True)
class _Plan:
    slots: Tensor  # where the step's KV goes, see KVCache.slots
    segments: list[_Segment]


class SdpaPagedAttention:
    """One call of torch's attention for all single-token rows of like length, and one or more for each longer row.

    Attributes:
        reads_padding: a wide block table costs time, whatever is in it
    """

    name = "torch scaled_dot_product_attention"
    reads_padding = True

    def __init__(self, cache: KVCache, num_heads: int) -> None:
        self._cache = cache
        self._group = num_heads // cache.num_kv_heads  # query heads that share a KV head

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
        for _, group in groupby(singles, key=lambda single: self._width(single[1], 1).bit_length()):
            segments.append(self._together(list(group)))
        blocks, offsets = token_places(rows, self._cache.block_size)
        device = self._cache.device
        return _Plan(self._cache.slots(blocks.to(device), offsets.to(device)), segments)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, plan: _Plan) -> Tensor:
        num_stored = len(plan.slots)
        self._cache.write(layer, plan.slots, torch.stack((key[:num_stored], value[:num_stored]), dim=1))
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)
        for segment in plan.segments:
            out[segment.tokens] = self._attend(layer, query[segment.tokens], segment)
        return out.flatten(1)

    def decode_inputs(self, batch: int, width: int) -> _DecodeInputs:
        """Memory for a step of `batch` single tokens with tables of `width` blocks, for `cuda_graphs.py`."""
        return _DecodeInputs(self, self._cache, batch, width)

    def segment(self, tokens: Tensor, table: Tensor, positions: Tensor) -> _Segment:
        """On the device alone, so that a graph can record it.

        tokens, positions: int64 [num_rows, num_queries]; table: int64 [num_rows, width], padded with blocks that may
        be read: all keys beyond a query's position are hidden.
        """
        cache = self._cache
        halves = torch.arange(2 * cache.num_kv_heads, device=table.device).view(2, 1, -1, 1)
        keys = torch.arange(table.shape[1] * cache.block_size, device=table.device)
        visible = (keys <= positions[:, :, None, None]).expand(-1, -1, self._group, -1)
        return _Segment(tokens, cache.row_of(table)[None, :, None, :] + halves, visible.flatten(1, 2)[:, None])

    def _attend(self, layer: int, query: Tensor, segment: _Segment) -> Tensor:
        """query: [num_rows, num_queries, num_heads, head_dim], and so is what is returned."""
        num_rows, num_queries, _, head_dim = query.shape
        heads, group = self._cache.num_kv_heads, self._group
        rows = (segment.gather + layer * 2 * heads).flatten()
        keys, values = self._cache.rows.index_select(0, rows).view(2, num_rows, heads, -1, head_dim)
        # [num_rows, kv_heads, num_queries * group, head_dim]: a query's heads of one group are adjacent
        grouped = query.view(num_rows, num_queries, heads, group, head_dim).transpose(1, 2).flatten(2, 3)
        out = scaled_dot_product_attention(grouped, keys, values, attn_mask=segment.visible)
        return out.view(num_rows, heads, num_queries, group, head_dim).transpose(1, 2).flatten(2, 3)

    def _chunks(self, first_token: int, row: Row) -> list[_Segment]:
        """A long row, cut where the mask would grow too large."""
        count = len(row.tokens)
        num_keys = self._width(row, count) * self._cache.block_size
        most = max(1, MASK_ELEMENTS // (num_keys * self._group))
        return [self._of_rows([first_token], [row], begin, min(begin + most, count)) for begin in range(0, count, most)]

    def _together(self, singles: list[tuple[int, Row]]) -> _Segment:
        return self._of_rows([token for token, _ in singles], [row for _, row in singles], 0, 1)

    def _of_rows(self, first_tokens: list[int], rows: list[Row], begin: int, end: int) -> _Segment:
        """Queries begin..end of each of `rows`."""
        device = self._cache.device
        queries = torch.arange(begin, end)
        starts = torch.tensor([row.start for row in rows])
        table = padded_table(rows, end, max(self._width(row, end) for row in rows), self._cache.block_size)
        return self.segment(
            (torch.tensor(first_tokens)[:, None] + queries).to(device),
            table.to(device),
            (starts[:, None] + queries).to(device),
        )

    def _width(self, row: Row, num_tokens: int) -> int:
        return -(-(row.start + num_tokens) // self._cache.block_size)


class _DecodeInputs:
    """`cuda_graphs.DecodeInputs`: a block table and positions that stay where they are."""

    def __init__(self, attention: SdpaPagedAttention, cache: KVCache, batch: int, width: int) -> None:
        self._attention = attention
        self._cache = cache
        self._table = torch.zeros(batch, width, dtype=torch.int64, device=cache.device)
        self._positions = torch.zeros(batch, 1, dtype=torch.int64, device=cache.device)
        self._tokens = torch.arange(batch, device=cache.device)[:, None]

    def fill(self, rows: Sequence[Row]) -> None:
        self._table.copy_(padded_table(rows, 1, self._table.shape[1], self._cache.block_size))
        self._positions.copy_(torch.tensor([[row.start] for row in rows]))

    def plan(self) -> _Plan:
        size = self._cache.block_size
        blocks = self._table.gather(1, self._positions // size).squeeze(1)
        slots = self._cache.slots(blocks, (self._positions % size).squeeze(1))
        return _Plan(slots, [self._attention.segment(self._tokens, self._table, self._positions)])
