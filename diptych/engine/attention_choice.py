"""Which attention computes, as one pure decision with its reason.

                 float32 + compiled kernels      C++ paged attention      exact
    CPU     ──►  otherwise                       torch, tile by tile      exact
                 bf16/fp16 + FlashInfer + fits   FlashInfer
    CUDA    ──►  otherwise                       torch's own attention

What FlashInfer takes is from its documentation and sources (0.7.2): GPUs from compute capability 7.5, bfloat16 from
8.0, half precision only, and of its FlashAttention-2 kernels those that are instantiated for all of its releases. Any
number of query heads per KV head and any block size will do, because its tensor-core kernels pack a group's heads into
one tile; so neither is asked here. flash-attn is not a candidate: its paged KV needs blocks that are multiples of 256
tokens (https://github.com/Dao-AILab/flash-attention/issues/828), and ours are transfer-sized.

Knows nothing about torch, tensors or how any of them is called.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

CPP_KERNELS = "c++ kernels"  # our own, compiled and loaded
FLASHINFER = "flashinfer"  # the Python package of this name
FLASHINFER_DTYPES = {"float16": (7, 5), "bfloat16": (8, 0)}  # and the compute capability each needs
FLASHINFER_HEAD_DIMS = (64, 128, 256)


class AttentionKind(StrEnum):
    CPP = "C++ paged attention"
    TILED = "torch paged attention"
    SDPA = "torch scaled_dot_product_attention"
    FLASHINFER = "FlashInfer"


@dataclass(frozen=True, slots=True)
class Choice:
    kind: AttentionKind
    reason: str  # for people


def choose_attention(
    device_type: str,
    capability: tuple[int, int] | None,
    dtype: str,
    head_dim: int,
    libraries: Collection[str],
) -> Choice:
    """
    Args:
        device_type: of torch, "cpu" or "cuda".
        capability: CUDA compute capability; None on CPU.
        dtype: of queries, keys and values, e.g. "bfloat16".
        libraries: of `CPP_KERNELS` and `FLASHINFER`, those that can be loaded.
    """
    if device_type == "cpu":
        if CPP_KERNELS in libraries:
            return Choice(AttentionKind.CPP, "reads blocks in place")
        return Choice(AttentionKind.TILED, "the C++ kernels cannot be had or do not compute this")
    refusal = _why_not_flashinfer(capability, dtype, head_dim, libraries)
    if refusal is None:
        return Choice(AttentionKind.FLASHINFER, "reads blocks in place")
    return Choice(AttentionKind.SDPA, refusal)


def _why_not_flashinfer(
    capability: tuple[int, int] | None, dtype: str, head_dim: int, libraries: Collection[str]
) -> str | None:
    if FLASHINFER not in libraries:
        return "FlashInfer is not installed"
    if dtype not in FLASHINFER_DTYPES:
        return f"FlashInfer does not compute in {dtype}"
    needed = FLASHINFER_DTYPES[dtype]
    if capability is None or capability < needed:
        return f"FlashInfer needs compute capability {needed[0]}.{needed[1]} for {dtype}"
    if head_dim not in FLASHINFER_HEAD_DIMS:
        return f"FlashInfer has no kernel for heads of {head_dim}; it has {FLASHINFER_HEAD_DIMS}"
    return None
