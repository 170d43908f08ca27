"""The memory that holds keys and values: one contiguous pool of blocks.

    block 0                                   block 1
    ┌ layer 0 ──────────────┬ layer 1 ─ … ─┐ ┌ …
    │ K: head 0, head 1, …  │              │ │
    │ V: head 0, head 1, …  │              │ │
    └───────────────────────┴──────────────┘ └

All layers of a block are adjacent, so that a block moves to another machine as one piece of memory. Within a head,
tokens are rows of `head_dim` numbers. The name of this layout is `diptych.model_folder.KV_LAYOUT`.

Knows nothing about which request a block belongs to; that is the block pool's business.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor


class KVCache:
    """`num_blocks` zeroed blocks, as many as fit into `capacity_bytes`. On CPU the pool starts on a page.

    Scratch blocks lie behind them, on top of the capacity, and nobody owns them. In the first, steps that are padded to
    a fixed size keep the padding's KV; the last one is where peers probe the connection.

    Attributes:
        pool: [num_blocks + scratch, num_layers, 2 (key, value), num_kv_heads, block_size, head_dim]
        rows: the same memory as [(num_blocks + scratch) * num_layers * 2 * num_kv_heads, block_size * head_dim]

    Raises:
        ValueError: not even one block fits.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int,
        num_layers: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        num_scratch_blocks: int = 0,
    ) -> None:
        shape = (num_layers, 2, num_kv_heads, block_size, head_dim)
        self.block_bytes = torch.Size(shape).numel() * dtype.itemsize
        self.num_blocks = capacity_bytes // self.block_bytes
        if self.num_blocks < 1:
            raise ValueError(
                f"kv_cache_bytes is {capacity_bytes}; one block of {block_size} tokens takes {self.block_bytes} bytes"
            )

        self.num_layers, self.num_kv_heads = num_layers, num_kv_heads
        self.block_size, self.head_dim = block_size, head_dim
        self.device = device
        self.num_scratch_blocks = num_scratch_blocks
        num_all = self.num_blocks + num_scratch_blocks
        memory = _allocate(num_all * self.block_bytes, device)
        self.pool: Tensor = memory.view(dtype).view(num_all, *shape)
        self.rows: Tensor = self.pool.view(-1, block_size * head_dim)
        self._slots = self.pool.view(-1, head_dim)

    @property
    def address(self) -> int:
        """Virtual address of block 0 (a device address on an accelerator)."""
        return self.pool.data_ptr()

    @property
    def scratch_block(self) -> int:
        """The first block that nobody owns.

        Raises:
            ValueError: the cache was made without.
        """
        if not self.num_scratch_blocks:
            raise ValueError("this cache has no scratch block")
        return self.num_blocks

    def slots(self, blocks: Tensor, offsets: Tensor) -> Tensor:
        """Where `write` puts tokens in layer 0. blocks, offsets: int64 [num_tokens]. Returns [num_tokens, 2, heads]."""
        heads = torch.arange(self.num_kv_heads, device=blocks.device)
        halves = torch.arange(2, device=blocks.device) * self.num_kv_heads
        row = (blocks * self._rows_per_block)[:, None, None] + halves[:, None] + heads
        return row * self.block_size + offsets[:, None, None]

    def write(self, layer: int, slots: Tensor, key_value: Tensor) -> None:
        """Store one layer's keys and values. key_value: [num_tokens, 2, num_kv_heads, head_dim]."""
        layer_offset = layer * 2 * self.num_kv_heads * self.block_size
        self._slots.index_copy_(0, (slots + layer_offset).flatten(), key_value.reshape(-1, self.head_dim))

    def row_of(self, blocks: Tensor) -> Tensor:
        """First row of each block's layer 0 in `rows`; layer l, half (0: key, 1: value) and head h follow in order."""
        return blocks * self._rows_per_block

    def clear_tail(self, block: int, num_tokens: int) -> None:
        """Zero a block beyond its first `num_tokens` tokens, in every layer."""
        self.pool[block, :, :, :, num_tokens:].zero_()

    def copy_block(self, source: int, destination: int) -> None:
        self.pool[destination].copy_(self.pool[source])

    @property
    def _rows_per_block(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads


def _allocate(num_bytes: int, device: torch.device) -> Tensor:
    """Zeroed memory as uint8 [num_bytes]."""
    if device.type != "cpu":
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    # Private anonymous pages: zeroed by the kernel, aligned, and taken from the machine only when first written.
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # a decode step touches thousands of scattered small pages otherwise
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)  # keeps `pages` alive
