"""The forward pass of the Llama family over flattened rows: every token of a step is one row of a matrix, no padding.

Covers Llama, Mistral, Qwen2 and Qwen3; what differs between them is in `ModelSpec` and the weights.

Knows nothing about requests, sampling or where KV is kept (that is `PagedAttention`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.engine.attention import PagedAttention
from diptych.engine.rope import RotaryEmbedding
from diptych.engine.row_ops import RowOps
from diptych.engine.weights import LayerWeights, ModelWeights
from diptych.model_folder import ModelSpec


class Model:
    """Token ids in, hidden states out; `logits` for those rows that need them."""

    def __init__(
        self, spec: ModelSpec, weights: ModelWeights, rope: RotaryEmbedding, attention: PagedAttention, ops: RowOps
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._rope = rope
        self._attention = attention
        self._ops = ops
        self._doubles = not weights.takes_single_rows

    def forward(self, tokens: Tensor, positions: Tensor, plan: Any) -> Tensor:
        """tokens, positions: int64 [num_tokens] in the attention plan's order.

        Returns [num_tokens, hidden_size]; for one token there may be a second row, to be ignored.
        """
        if len(tokens) == 1 and self._doubles:  # once here rather than in every linear layer, see `linear.py`
            tokens, positions = tokens.repeat(2), positions.repeat(2)
        hidden = self._weights.embedding[tokens]  # [num_tokens, hidden_size]
        cos, sin = self._rope.at(positions)
        delta = None
        for index, layer in enumerate(self._weights.layers):
            normed = self._ops.add_norm(hidden, delta, layer.input_norm)
            delta = self._attend(index, layer, normed, cos, sin, plan)
            normed = self._ops.add_norm(hidden, delta, layer.post_attention_norm)
            delta = layer.down(self._ops.silu_mul(layer.gate_up(normed)))
        return hidden if delta is None else hidden.add_(delta)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size]. Returns float32 [num_rows, vocab_size]."""
        return self._weights.head(self._ops.add_norm(hidden, None, self._weights.norm)).float()

    def _attend(self, index: int, layer: LayerWeights, hidden: Tensor, cos: Tensor, sin: Tensor, plan: Any) -> Tensor:
        spec = self._spec
        heads = layer.qkv(hidden).view(len(hidden), -1, spec.head_dim)  # [num_tokens, heads + 2 * kv_heads, head_dim]
        heads = self._ops.rotate(heads, (spec.num_heads, spec.num_kv_heads), cos, sin, layer.head_norms)
        query, key, value = torch.split(heads, [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        return layer.output(self._attention.run(index, query, key, value, plan))
