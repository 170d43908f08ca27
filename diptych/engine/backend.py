"""Which implementation computes attention and the row operations: kernels where they can be had, torch elsewhere.

The rule is in `attention_choice.py`; here is what carries it out: finding libraries, and taking torch instead of one
that turns out to be unusable, with a line in the log.

Knows nothing about weights or plans.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from diptych.engine.attention import PagedAttention, TorchPagedAttention
from diptych.engine.attention_check import TOLERANCE, largest_difference
from diptych.engine.attention_choice import CPP_KERNELS, FLASHINFER, AttentionKind, choose_attention
from diptych.engine.device import capability_of
from diptych.engine.flashinfer_attention import FlashInferAttention
from diptych.engine.kernels.native import Kernels, load_kernels, supports
from diptych.engine.kernels.native_attention import NativePagedAttention
from diptych.engine.kernels.native_row_ops import NativeRowOps
from diptych.engine.kv_cache import KVCache
from diptych.engine.row_ops import RowOps, TorchRowOps
from diptych.engine.sdpa_attention import SdpaPagedAttention
from diptych.model_spec import ModelSpec

log = logging.getLogger(__name__)

KernelChoice = Literal["auto", "native", "torch"]


@dataclass(frozen=True, slots=True)
class Backend:
    """Makes the parts of a model that come in several implementations."""

    kernels: Kernels | None  # None: nothing in C++
    kind: AttentionKind = AttentionKind.TILED
    library: Any = field(default=None, repr=False)  # the package of a kind that has one

    def attention(self, cache: KVCache, spec: ModelSpec) -> PagedAttention:
        if self.kernels is not None:
            return NativePagedAttention(self.kernels, cache, spec.num_heads, torch.get_num_threads())
        if self.kind is AttentionKind.FLASHINFER:
            return FlashInferAttention(self.library, cache, spec.num_heads)
        if self.kind is AttentionKind.SDPA:
            return SdpaPagedAttention(cache, spec.num_heads)
        return TorchPagedAttention(cache, spec.num_heads)

    def row_ops(self, spec: ModelSpec) -> RowOps:
        if self.kernels is not None:
            return NativeRowOps(self.kernels, spec.rms_norm_eps, torch.get_num_threads())
        return TorchRowOps(spec.rms_norm_eps)


def choose_backend(choice: KernelChoice, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Backend:
    """The best backend there is, or the one asked for. "torch": no library and nothing compiled.

    Raises:
        ValueError: "native" was asked for and cannot be had.
    """
    usable = choice != "torch" and supports(device, dtype, spec.head_dim)
    kernels = load_kernels() if usable else None
    if choice == "native" and kernels is None:
        raise ValueError(f"the C++ kernels cannot be had for {dtype} on {device} with heads of {spec.head_dim}")
    libraries = {CPP_KERNELS} if kernels is not None else set()
    if choice == "auto" and importlib.util.find_spec(FLASHINFER) is not None:
        libraries.add(FLASHINFER)
    chosen = choose_attention(
        device.type, capability_of(device), str(dtype).removeprefix("torch."), spec.head_dim, libraries
    )
    if chosen.kind is AttentionKind.FLASHINFER:
        return _with_flashinfer(spec, device, dtype)
    log.info("%s: %s", chosen.kind, chosen.reason)
    return Backend(kernels, chosen.kind)


def _with_flashinfer(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Backend:
    """FlashInfer if it works here and agrees with torch's attention, else that."""
    try:
        library = importlib.import_module(FLASHINFER)
        difference = flashinfer_difference(library, spec, device, dtype)
    except Exception as error:  # of a foreign library that compiles itself: any kind; torch's attention can do its work
        log.warning("FlashInfer is installed but cannot be used, attention runs in torch: %r", error)
        return Backend(None, AttentionKind.SDPA)
    if difference > TOLERANCE:
        log.warning("FlashInfer is off by %.3g from torch's attention, which is used instead", difference)
        return Backend(None, AttentionKind.SDPA)
    log.info("FlashInfer agrees with torch's attention within %.3g", difference)
    return Backend(None, AttentionKind.FLASHINFER, library)


def flashinfer_difference(library: Any, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> float:
    """How far it is from torch's attention for heads like this model's; see `attention_check.py`."""
    return largest_difference(
        lambda cache: FlashInferAttention(library, cache, spec.num_heads),
        lambda cache: SdpaPagedAttention(cache, spec.num_heads),
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
    )
