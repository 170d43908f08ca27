"""`PagedAttention` by the C++ kernel, which reads blocks where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.engine.interface import Row
from diptych.engine.kernels.native import Geometry, Kernels, Rows, Step
from diptych.engine.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class _Plan:
    step: Step
    arrays: tuple[NDArray[np.generic], ...]  # the memory `step` points to


class NativePagedAttention:
    """float32 on CPU. Threads divide (tokens, KV head) pairs, which does not change any of their results."""

    name = "C++ paged attention"

    def __init__(self, kernels: Kernels, cache: KVCache, num_heads: int, threads: int = 1) -> None:
        self._kernels = kernels
        self._cache = cache
        blocks, layers, halves, heads, _, _ = cache.pool.stride()
        self._geometry = Geometry(
            pool=cache.address,
            block_stride=blocks,
            layer_stride=layers,
            half_stride=halves,
            head_stride=heads,
            block_size=cache.block_size,
            head_dim=cache.head_dim,
            num_heads=num_heads,
            num_kv_heads=cache.num_kv_heads,
        )
        self._task_tokens = kernels.task_tokens(num_heads // cache.num_kv_heads)
        self._threads = threads

    def plan(self, rows: Sequence[Row]) -> _Plan:
        tasks: list[tuple[int, int, int, int]] = []
        tables: list[int] = []
        slots: list[NDArray[np.int64]] = []
        first_token = 0
        for row in rows:
            count = len(row.tokens)
            for begin in range(0, count, self._task_tokens):
                tokens = min(self._task_tokens, count - begin)
                tasks.append((first_token + begin, tokens, row.start + begin, len(tables)))
            used = row.blocks[: -(-(row.start + count) // self._cache.block_size)]
            tables.extend(used)
            slots.append(self._slots(row, used))
            first_token += count
        arrays = np.array(tasks, np.int64), np.array(tables, np.int32), np.concatenate(slots)
        addresses = [array.ctypes.data for array in arrays]
        return _Plan(Step(*addresses, len(tasks), first_token), arrays)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, plan: _Plan) -> Tensor:
        # Rows beyond the plan's tokens are padding; their outputs are only kept finite.
        num_tokens, num_heads, head_dim = query.shape
        out = torch.empty(num_tokens, num_heads * head_dim)
        out[plan.step.num_tokens :].zero_()
        rows = Rows.of(query), Rows.of(key), Rows.of(value), Rows(out.data_ptr(), out.stride(0))
        self._kernels.attend(self._geometry, plan.step, layer, *rows, self._threads)
        return out

    def _slots(self, row: Row, blocks: Sequence[int]) -> NDArray[np.int64]:
        """For each token, floats from the pool's start to its first key in layer 0."""
        size, stride, dim = self._cache.block_size, self._geometry.block_stride, self._cache.head_dim
        if len(row.tokens) == 1:
            block, offset = divmod(row.start, size)
            return np.array([blocks[block] * stride + offset * dim])
        positions = np.arange(row.start, row.start + len(row.tokens), dtype=np.int64)
        slots: NDArray[np.int64] = np.array(blocks, np.int64)[positions // size] * stride + positions % size * dim
        return slots
