"""`PagedAttention` by FlashInfer (https://github.com/flashinfer-ai/flashinfer), whose kernels read blocks in place.

Our pool is block-major, FlashInfer thinks in one paged tensor per layer. Both fit, because it takes strides
(flashinfer pull request 513): keys of layer l are the view `pool[:, l, 0]`, [blocks, kv_heads, block_size, head_dim],
which is its "HND" layout with a longer step from block to block. Only the FlashAttention-2 backend is asked for: it is
there on every supported GPU, and multiplies block and step in 64 bits, whatever the pool's size.

Prefill and decode use the same tensor-core kernels; the decode wrapper differs in that its plan can be renewed under a
recorded CUDA graph. Planning happens on the host and tells the wrapper how to share out the work, so a plan is valid
until the next call of `plan`.

Written against flashinfer-python 0.7.2 and checked there against its signatures; it has never run on a GPU. So
`attention_check.py` compares it with torch's attention at every start, before anything relies on it.

Knows nothing about weights, sampling or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diptych.engine.attention import token_places
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache

WORKSPACE_BYTES = 128 << 20  # for partial results of split rows; the size FlashInfer's documentation recommends


@dataclass(frozen=True, slots=True)
class _Plan:
    slots: Tensor  # where the step's KV goes, see KVCache.slots
    wrapper: Any  # has been planned for the step
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Pages:
    """Block tables as FlashInfer wants them, int32 on the host: planning reads them there, and copies them itself."""

    first: Tensor  # [num_rows + 1]: where a row's pages begin in `pages`
    pages: Tensor  # [first[-1]]
    last_length: Tensor  # [num_rows]: tokens in a row's last page, 1 to block_size

    @classmethod
    def of(cls, rows: Sequence[Row], block_size: int) -> _Pages:
        ends = [row.start + len(row.tokens) for row in rows]
        used = [row.blocks[: -(-end // block_size)] for row, end in zip(rows, ends, strict=True)]
        return cls(
            _starts(len(blocks) for blocks in used),
            torch.tensor([block for blocks in used for block in blocks], dtype=torch.int32),
            torch.tensor([(end - 1) % block_size + 1 for end in ends], dtype=torch.int32),
        )


class FlashInferAttention:
    """float16 and bfloat16 on CUDA.

    Attributes:
        reads_padding: a wide block table costs nothing but its own memory
    """

    name = "FlashInfer"
    reads_padding = False

    def __init__(self, library: Any, cache: KVCache, num_heads: int) -> None:
        """`library`: the imported package."""
        self._library = library
        self._cache = cache
        self._num_heads = num_heads
        self._layers = [(cache.pool[:, layer, 0], cache.pool[:, layer, 1]) for layer in range(cache.num_layers)]
        # Shared by all wrappers, because one step runs at a time and leaves nothing in it. Zeroed: asked for.
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=cache.device)
        self._wrapper = library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "HND", backend="fa2")

    def plan(self, rows: Sequence[Row]) -> _Plan:
        pages = _Pages.of(rows, self._cache.block_size)
        tokens = _starts(len(row.tokens) for row in rows)
        self._wrapper.plan(
            tokens, pages.first, pages.pages, pages.last_length, *self._shape(), causal=True, **self._dtypes()
        )
        blocks, offsets = token_places(rows, self._cache.block_size)
        device = self._cache.device
        return _Plan(self._cache.slots(blocks.to(device), offsets.to(device)), self._wrapper, len(blocks))

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, plan: _Plan) -> Tensor:
        count = plan.num_tokens
        self._cache.write(layer, plan.slots, torch.stack((key[:count], value[:count]), dim=1))
        out: Tensor = plan.wrapper.run(query[:count], self._layers[layer])
        if count < len(query):
            out = torch.cat((out, out.new_zeros(len(query) - count, *out.shape[1:])))
        return out.flatten(1)

    def decode_inputs(self, batch: int, width: int) -> _DecodeInputs:
        """Memory for a step of `batch` single tokens with tables of up to `width` blocks, for `cuda_graphs.py`."""
        device = self._cache.device
        wrapper = self._library.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "HND",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=torch.zeros(batch + 1, dtype=torch.int32, device=device),
            paged_kv_indices_buffer=torch.zeros(batch * width, dtype=torch.int32, device=device),
            paged_kv_last_page_len_buffer=torch.ones(batch, dtype=torch.int32, device=device),
            backend="fa2",
        )
        return _DecodeInputs(self._cache, wrapper, batch, self._shape(), self._dtypes())

    def _shape(self) -> tuple[int, int, int, int]:
        return self._num_heads, self._cache.num_kv_heads, self._cache.head_dim, self._cache.block_size

    def _dtypes(self) -> dict[str, torch.dtype]:
        return {"q_data_type": self._cache.pool.dtype, "kv_data_type": self._cache.pool.dtype}


class _DecodeInputs:
    """`cuda_graphs.DecodeInputs`: a wrapper whose plan is written into memory that a recorded graph reads."""

    def __init__(
        self, cache: KVCache, wrapper: Any, batch: int, shape: tuple[int, int, int, int], dtypes: dict[str, torch.dtype]
    ) -> None:
        self._cache = cache
        self._wrapper = wrapper
        self._shape = shape
        self._dtypes = dtypes
        self._blocks = torch.zeros(batch, dtype=torch.int64, device=cache.device)
        self._offsets = torch.zeros(batch, dtype=torch.int64, device=cache.device)

    def fill(self, rows: Sequence[Row]) -> None:
        # The wrapper plans in one pinned buffer and copies from it without waiting. The copy of the step before is done
        # by now, because a runner waits for the device after each step.
        pages = _Pages.of(rows, self._cache.block_size)
        self._wrapper.plan(pages.first, pages.pages, pages.last_length, *self._shape, **self._dtypes)
        blocks, offsets = token_places(rows, self._cache.block_size)
        self._blocks.copy_(blocks)
        self._offsets.copy_(offsets)

    def plan(self) -> _Plan:
        return _Plan(self._cache.slots(self._blocks, self._offsets), self._wrapper, len(self._blocks))


def _starts(lengths: Iterable[int]) -> Tensor:
    """Where each piece begins, and where the last one ends: int32 [num_pieces + 1]."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
