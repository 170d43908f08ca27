"""The forward pass of the Llama family over flattened rows: every token of a step is one row of a matrix, no padding.

Covers Llama, Mistral, Qwen2 and Qwen3; what differs between them is in `ModelSpec` and the weights.

Knows nothing about requests, sampling or where KV is kept (that is `PagedAttention`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diptych.engine.attention import PagedAttention
from diptych.engine.rope import RotaryEmbedding, rotate
from diptych.engine.weights import LayerWeights, ModelWeights
from diptych.model_folder import ModelSpec


class Model:
    """Token ids in, hidden states out; `logits` for those rows that need them."""

    def __init__(
        self, spec: ModelSpec, weights: ModelWeights, rope: RotaryEmbedding, attention: PagedAttention
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._rope = rope
        self._attention = attention

    def forward(self, tokens: Tensor, positions: Tensor, plan: Any) -> Tensor:
        """tokens, positions: int64 [num_tokens] in the attention plan's order. Returns [num_tokens, hidden_size]."""
        hidden = self._weights.embedding[tokens]  # [num_tokens, hidden_size]
        cos, sin = self._rope.at(positions)
        for index, layer in enumerate(self._weights.layers):
            hidden = hidden + self._attend(index, layer, self._norm(hidden, layer.input_norm), cos, sin, plan)
            hidden = hidden + self._feed_forward(layer, self._norm(hidden, layer.post_attention_norm))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size]. Returns float32 [num_rows, vocab_size]."""
        return self._weights.head(self._norm(hidden, self._weights.norm)).float()

    def _attend(self, index: int, layer: LayerWeights, hidden: Tensor, cos: Tensor, sin: Tensor, plan: Any) -> Tensor:
        spec = self._spec
        heads = layer.qkv(hidden).view(len(hidden), -1, spec.head_dim)  # [num_tokens, heads + 2 * kv_heads, head_dim]
        query, key, value = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)

        key_value = torch.stack((rotate(key, cos, sin), value), dim=1)  # [num_tokens, 2, kv_heads, head_dim]
        return layer.output(self._attention.run(index, rotate(query, cos, sin), key_value, plan))

    def _feed_forward(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        gate, up = layer.gate_up(hidden).chunk(2, dim=-1)  # each [num_tokens, intermediate_size]
        return layer.down(functional.silu(gate) * up)

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """RMS norm over the last dimension (https://arxiv.org/abs/1910.07467), in float32 as transformers does."""
        wide = rows.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._spec.rms_norm_eps)
        return weight * (wide * scale).to(rows.dtype)
