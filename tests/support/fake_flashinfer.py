"""Stands in for the FlashInfer package: the two wrappers the engine uses, computed densely in torch on any device.

As strict as the real one about what it is given (dtypes, places, page lengths, fixed sizes under a CUDA graph), and as
forgetful: a wrapper computes by its last plan. Every call is kept, so that a test can hold it against the signatures of
the real package where that is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Call:
    wrapper: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class FakeFlashInfer:
    calls: list[Call] = field(default_factory=list)
    off_by: float = 0.0  # added to every output

    def BatchPrefillWithPagedKVCacheWrapper(self, *args: Any, **kwargs: Any) -> _Prefill:
        self.calls.append(Call("BatchPrefillWithPagedKVCacheWrapper", "__init__", args, kwargs))
        return _Prefill(self, *args, **kwargs)

    def BatchDecodeWithPagedKVCacheWrapper(self, *args: Any, **kwargs: Any) -> _Decode:
        self.calls.append(Call("BatchDecodeWithPagedKVCacheWrapper", "__init__", args, kwargs))
        return _Decode(self, *args, **kwargs)


class _Wrapper:
    name: str

    def __init__(self, library: FakeFlashInfer, workspace: Tensor, kv_layout: str) -> None:
        assert workspace.dtype == torch.uint8
        assert not workspace.any()
        assert kv_layout == "HND"
        self._library = library
        self._causal = False

    def _take_plan(self, first: Tensor, pages: Tensor, last: Tensor, shape: tuple[int, ...]) -> None:
        for given in (first, pages, last):
            assert given.dtype == torch.int32
            assert given.device.type == "cpu"
        assert len(pages) == first[-1]
        assert len(last) == len(first) - 1
        assert (last >= 1).all()
        assert (last <= shape[3]).all()
        self._shape = shape

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        self._library.calls.append(Call(self.name, "run", (q, paged_kv_cache), {}))
        keys, values = paged_kv_cache
        num_heads, kv_heads, head_dim, page = self._shape
        assert q.shape[1:] == (num_heads, head_dim)
        assert keys.shape[1:] == (kv_heads, page, head_dim)
        assert keys.stride() == values.stride()
        assert keys.stride(-1) == 1
        outs = [self._row(q, keys, values, row, num_heads // kv_heads) for row in range(len(self._starts()) - 1)]
        return torch.cat(outs) + self._library.off_by

    def _row(self, q: Tensor, keys: Tensor, values: Tensor, row: int, group: int) -> Tensor:
        first, pages, last = self._tables()
        table = pages[int(first[row]) : int(first[row + 1])].long()
        length = (len(table) - 1) * keys.shape[2] + int(last[row])
        key, value = (
            each[table].transpose(0, 1).flatten(1, 2)[:, :length].repeat_interleave(group, 0).float()
            for each in (keys, values)
        )
        starts = self._starts()
        query = q[int(starts[row]) : int(starts[row + 1])].float().transpose(0, 1)
        scores = query @ key.transpose(1, 2) / math.sqrt(q.shape[2])
        if self._causal:
            count = query.shape[1]
            scores.masked_fill_(torch.ones(count, length).tril(length - count) == 0, -math.inf)
        return (scores.softmax(-1) @ value).transpose(0, 1).to(q.dtype)

    def _starts(self) -> Tensor:
        raise NotImplementedError

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError


class _Prefill(_Wrapper):
    name = "BatchPrefillWithPagedKVCacheWrapper"

    def __init__(self, library: FakeFlashInfer, workspace: Tensor, kv_layout: str, *, backend: str) -> None:
        super().__init__(library, workspace, kv_layout)
        assert backend == "fa2"

    def plan(self, qo: Tensor, first: Tensor, pages: Tensor, last: Tensor, *shape: int, **kwargs: Any) -> None:
        self._library.calls.append(Call(self.name, "plan", (qo, first, pages, last, *shape), kwargs))
        self._take_plan(first, pages, last, shape)
        assert qo.dtype == torch.int32
        assert len(qo) == len(first)
        self._causal = kwargs["causal"]
        self._plan = (qo, first, pages, last)

    def _starts(self) -> Tensor:
        return self._plan[0]

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._plan[1:]


class _Decode(_Wrapper):
    """Under a CUDA graph: reads its tables from the buffers it was given, whatever the plan's own tensors become."""

    name = "BatchDecodeWithPagedKVCacheWrapper"

    def __init__(self, library: FakeFlashInfer, workspace: Tensor, kv_layout: str, **kwargs: Any) -> None:
        super().__init__(library, workspace, kv_layout)
        assert kwargs["use_cuda_graph"]
        assert kwargs["use_tensor_cores"]
        self._first = kwargs["paged_kv_indptr_buffer"]
        self._pages = kwargs["paged_kv_indices_buffer"]
        self._last = kwargs["paged_kv_last_page_len_buffer"]
        assert len(self._first) == len(self._last) + 1

    def plan(self, first: Tensor, pages: Tensor, last: Tensor, *shape: int, **kwargs: Any) -> None:
        self._library.calls.append(Call(self.name, "plan", (first, pages, last, *shape), kwargs))
        self._take_plan(first, pages, last, shape)
        assert len(last) == len(self._last), "the batch size is fixed under a CUDA graph"
        assert len(pages) <= len(self._pages)
        self._first.copy_(first)
        self._last.copy_(last)
        self._pages[: len(pages)].copy_(pages)

    def _starts(self) -> Tensor:
        return torch.arange(len(self._first))

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._first, self._pages, self._last
