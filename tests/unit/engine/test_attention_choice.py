"""Which attention computes, as a table."""

from __future__ import annotations

import pytest

from diptych.engine.attention_choice import CPP_KERNELS, FLASHINFER, AttentionKind, choose_attention

CPP, TILED, SDPA, FI = AttentionKind.CPP, AttentionKind.TILED, AttentionKind.SDPA, AttentionKind.FLASHINFER
AMPERE, TURING, VOLTA, HOPPER = (8, 0), (7, 5), (7, 0), (9, 0)


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "head_dim", "libraries", "kind", "reason"),
    [
        ("cpu", None, "float32", 64, {CPP_KERNELS}, CPP, "in place"),
        ("cpu", None, "float32", 64, {CPP_KERNELS, FLASHINFER}, CPP, "in place"),
        ("cpu", None, "float32", 64, {FLASHINFER}, TILED, "C++"),
        ("cpu", None, "bfloat16", 64, set(), TILED, "C++"),
        ("cuda", HOPPER, "bfloat16", 128, {FLASHINFER}, FI, "in place"),
        ("cuda", AMPERE, "bfloat16", 64, {FLASHINFER}, FI, "in place"),
        ("cuda", AMPERE, "float16", 256, {FLASHINFER}, FI, "in place"),
        ("cuda", TURING, "float16", 128, {FLASHINFER}, FI, "in place"),
        ("cuda", HOPPER, "bfloat16", 128, set(), SDPA, "not installed"),
        ("cuda", TURING, "bfloat16", 128, {FLASHINFER}, SDPA, "8.0 for bfloat16"),
        ("cuda", VOLTA, "float16", 128, {FLASHINFER}, SDPA, "7.5 for float16"),
        ("cuda", None, "float16", 128, {FLASHINFER}, SDPA, "7.5 for float16"),
        ("cuda", HOPPER, "float32", 128, {FLASHINFER}, SDPA, "float32"),
        ("cuda", HOPPER, "bfloat16", 80, {FLASHINFER}, SDPA, "heads of 80"),
        ("cuda", HOPPER, "bfloat16", 16, {FLASHINFER}, SDPA, "heads of 16"),
    ],
)
def test_choice(
    device: str,
    capability: tuple[int, int] | None,
    dtype: str,
    head_dim: int,
    libraries: set[str],
    kind: AttentionKind,
    reason: str,
) -> None:
    choice = choose_attention(device, capability, dtype, head_dim, libraries)
    assert choice.kind is kind
    assert reason in choice.reason
