"""Rotary position embedding (https://arxiv.org/abs/2104.09864) and the ways its frequencies are stretched.

The formulas and their order of rounding are those of transformers' `modeling_rope_utils.py`, so that both compute the
same numbers. Angles are tabulated once: a position's values then never depend on what else is in the batch.

Knows nothing about attention or models beyond `ModelSpec`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diptych.model_spec import ModelSpec, RopeScaling


class RotaryEmbedding:
    """Rotates query and key heads by their positions."""

    def __init__(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
        frequencies, scale = rope_frequencies(spec)
        positions = torch.arange(spec.max_context, dtype=torch.float32)
        angles = torch.outer(positions, frequencies)  # [max_context, head_dim / 2]
        self._cos = (angles.cos() * scale).to(device, dtype)
        self._sin = (angles.sin() * scale).to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for int64 [num_tokens] positions, each [num_tokens, 1, head_dim / 2]."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `heads` [num_tokens, num_heads, head_dim]; dimension i is paired with i + head_dim / 2."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rope_frequencies(spec: ModelSpec) -> tuple[Tensor, float]:
    """Radians per position, float32 [head_dim / 2], and the factor cos and sin are multiplied with."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    base = 1.0 / (spec.rope_theta**exponents)
    scaling = spec.rope_scaling
    if scaling is None:
        return base, 1.0
    if scaling.kind == "linear":
        return base / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(base, scaling), 1.0
    return _yarn(base, scaling, spec)


def _llama3(base: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretch long wavelengths, keep short ones, blend between (Llama 3.1)."""
    wavelengths = 2 * math.pi / base
    longest_kept = scaling.original_max_position / scaling.high_freq_factor
    shortest_stretched = scaling.original_max_position / scaling.low_freq_factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    blend = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / span
    stretched = torch.where(wavelengths > shortest_stretched, base / scaling.factor, base)
    blended = (1 - blend) * stretched / scaling.factor + blend * stretched
    between = (wavelengths >= longest_kept) & (wavelengths <= shortest_stretched)
    return torch.where(between, blended, stretched)


def _yarn(base: Tensor, scaling: RopeScaling, spec: ModelSpec) -> tuple[Tensor, float]:
    """Stretch dimensions that turn less than `beta_slow` times over the original context, keep those that turn more
    than `beta_fast` times, blend linearly between (https://arxiv.org/abs/2309.00071, NTK-by-parts)."""

    def dimension(turns: float) -> float:
        ratio = scaling.original_max_position / (turns * 2 * math.pi)
        return spec.head_dim * math.log(ratio) / (2 * math.log(spec.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.head_dim - 1)
    width = high - low or 0.001  # as in the original: no division by zero
    stretch = ((torch.arange(len(base), dtype=torch.float32) - low) / width).clamp(0, 1)
    keep = 1 - stretch
    frequencies = base / scaling.factor * (1 - keep) + base * keep
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return frequencies, factor
