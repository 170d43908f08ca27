"""Which implementation computes attention and the row operations: C++ where it can be had, torch everywhere else.

Knows nothing about weights or plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from diptych.engine.attention import PagedAttention, TorchPagedAttention
from diptych.engine.kernels.native import Kernels, load_kernels, supports
from diptych.engine.kernels.native_attention import NativePagedAttention
from diptych.engine.kernels.native_row_ops import NativeRowOps
from diptych.engine.kv_cache import KVCache
from diptych.engine.row_ops import RowOps, TorchRowOps
from diptych.model_spec import ModelSpec

KernelChoice = Literal["auto", "native", "torch"]


@dataclass(frozen=True, slots=True)
class Backend:
    """Makes the parts of a model that come in several implementations."""

    kernels: Kernels | None  # None: all in torch

    def attention(self, cache: KVCache, spec: ModelSpec) -> PagedAttention:
        if self.kernels is not None:
            return NativePagedAttention(self.kernels, cache, spec.num_heads, torch.get_num_threads())
        return TorchPagedAttention(cache, spec.num_heads)

    def row_ops(self, spec: ModelSpec) -> RowOps:
        if self.kernels is not None:
            return NativeRowOps(self.kernels, spec.rms_norm_eps, torch.get_num_threads())
        return TorchRowOps(spec.rms_norm_eps)


def choose_backend(choice: KernelChoice, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Backend:
    """The best backend there is, or the one asked for.

    Raises:
        ValueError: "native" was asked for and cannot be had.
    """
    usable = choice != "torch" and supports(device, dtype, spec.head_dim)
    kernels = load_kernels() if usable else None
    if choice == "native" and kernels is None:
        raise ValueError(f"the C++ kernels cannot be had for {dtype} on {device} with heads of {spec.head_dim}")
    return Backend(kernels)
