"""The comparison at start finds each way in which a paged kernel can be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.engine.attention import PagedAttention, TorchPagedAttention
from diptych.engine.attention_check import TOLERANCE, largest_difference
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache
from diptych.engine.sdpa_attention import SdpaPagedAttention

HEADS, KV_HEADS, DIM = 6, 2, 64


class Wrong(SdpaPagedAttention):
    """Mistakes a kernel, or the code that calls it, could make."""

    mistake = ""

    def plan(self, rows: Sequence[Row]) -> Any:
        plan = super().plan(rows)
        if self.mistake == "blocks read in another order":
            others = [Row(row.sequence_id, row.tokens, row.start, row.blocks[::-1]) for row in rows]
            return replace(plan, segments=super().plan(others).segments)
        if self.mistake == "not causal":
            return self._seeing(plan, lambda visible: visible | visible.any(-2, keepdim=True))
        if self.mistake == "one key too few":
            return self._seeing(
                plan, lambda visible: torch.cat((visible[..., :1], (visible & visible.roll(-1, -1))[..., 1:]), -1)
            )
        return plan

    def _seeing(self, plan: Any, change: Callable[[Tensor], Tensor]) -> Any:
        segments = [replace(segment, visible=change(segment.visible)) for segment in plan.segments]
        return replace(plan, segments=segments)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, plan: Any) -> Tensor:
        if self.mistake == "heads of a group interleaved":
            query = query.view(len(query), KV_HEADS, -1, DIM).transpose(1, 2).flatten(1, 2)
        if self.mistake == "another scale":
            query = query * 0.7
        if self.mistake == "another layer's values":
            self._cache.pool[:, 0] = self._cache.pool[:, layer].roll(1, 0)
            super().run(layer, query, key, value, plan)
            return super().run(0, query, key.roll(1, 0), value.roll(1, 0), plan)
        out = super().run(layer, query, key, value, plan)
        return out * math.nan if self.mistake == "nothing finite" else out


def difference(make: type[PagedAttention] | Any, dtype: torch.dtype = torch.bfloat16) -> float:
    return largest_difference(
        lambda cache: make(cache, HEADS),
        lambda cache: SdpaPagedAttention(cache, HEADS),
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_right_kernel_is_well_within_the_tolerance(dtype: torch.dtype) -> None:
    assert 0 < difference(TorchPagedAttention, dtype) < TOLERANCE / 2


@pytest.mark.parametrize(
    "mistake",
    [
        "blocks read in another order",
        "not causal",
        "one key too few",
        "heads of a group interleaved",
        "another scale",
        "another layer's values",
        "nothing finite",
    ],
)
def test_a_wrong_one_is_far_outside(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "mistake", mistake)
    assert difference(Wrong) > 4 * TOLERANCE


def test_computing_leaves_torchs_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    difference(SdpaPagedAttention)
    assert torch.equal(torch.rand(1), expected)


def test_covers_several_layers_and_scattered_blocks() -> None:
    seen: list[KVCache] = []

    def make(cache: KVCache, num_heads: int) -> PagedAttention:
        seen.append(cache)
        return SdpaPagedAttention(cache, num_heads)

    assert difference(make) == 0
    assert not seen[0].pool[:, [0, 2]].any()
    assert seen[0].pool[:, 1].flatten(1).any(1).all()
