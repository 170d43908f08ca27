"""Executes plans with torch: the copies, one forward pass over all rows, then each row's draws.

Knows nothing about requests, block ownership or time; the scheduler decided all of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diptych.engine.attention import PagedAttention, TorchPagedAttention
from diptych.engine.interface import Drawn, Plan, Row
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.engine.rope import RotaryEmbedding
from diptych.engine.sampler import draw_all
from diptych.engine.weights import load_weights
from diptych.model_folder import ModelFolder


class TorchRunner:
    """A `Runner` (`diptych.engine.interface`). Not thread-safe: one thread executes plans.

    Attributes:
        dtype: of weights and KV, as in `ModelFolder.fingerprint` ("float32" on CPU)
    """

    def __init__(self, model: Model, cache: KVCache, attention: PagedAttention) -> None:
        self._model = model
        self._cache = cache
        self._attention = attention
        self.num_blocks = cache.num_blocks
        self.block_bytes = cache.block_bytes
        self.pool_address = cache.address
        self.dtype = str(cache.pool.dtype).removeprefix("torch.")

    @classmethod
    def load(
        cls,
        folder: ModelFolder,
        *,
        kv_cache_bytes: int,
        block_size: int,
        device: str,
        threads: int,
        progress: Callable[[str, float], None] | None = None,
    ) -> TorchRunner:
        """Load a model and allocate its KV pool. Sets torch's thread count for the whole process.

        Raises:
            ValueError: the folder's weights do not fit its config, or `kv_cache_bytes` holds not even one block.
        """
        torch.set_num_threads(threads)
        place = torch.device(device)
        # On CPU in float32: half precision has no fast path on most of them. Accelerators get bfloat16.
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
        spec = folder.spec
        cache = KVCache(
            capacity_bytes=kv_cache_bytes,
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            block_size=block_size,
            head_dim=spec.head_dim,
            dtype=dtype,
            device=place,
        )
        with torch.inference_mode():
            weights = load_weights(folder, dtype, place, progress)
            rope = RotaryEmbedding(spec, place, dtype)
        attention = TorchPagedAttention(cache, spec.num_heads)
        return cls(Model(spec, weights, rope, attention), cache, attention)

    @torch.inference_mode()
    def execute(self, plan: Plan) -> list[list[Drawn]]:
        for source, destination in plan.copies:
            self._cache.copy_block(source, destination)
        if not plan.rows:
            return []

        self._clean_new_blocks(plan.rows)
        device = self._cache.pool.device
        tokens = torch.tensor([token for row in plan.rows for token in row.tokens], device=device)
        positions = torch.cat([torch.arange(row.start, row.start + len(row.tokens)) for row in plan.rows]).to(device)
        hidden = self._model.forward(tokens, positions, self._attention.plan(plan.rows))
        return self._draw(plan.rows, hidden)

    def clear_tail(self, block: int, num_tokens: int) -> None:
        self._cache.clear_tail(block, num_tokens)

    def _clean_new_blocks(self, rows: Sequence[Row]) -> None:
        """Zero the unwritten part of each block a row starts to fill.

        Attention weighs keys past the sequence's end with 0; but 0 times a NaN that an earlier owner left is NaN.
        """
        for row in rows:
            block, filled = divmod(row.start + len(row.tokens), self._cache.block_size)
            if filled and row.start <= block * self._cache.block_size:
                self._cache.clear_tail(row.blocks[block], filled)

    def _draw(self, rows: Sequence[Row], hidden: torch.Tensor) -> list[list[Drawn]]:
        """Logits only for rows that draw. hidden: [num_tokens, hidden_size]."""
        lasts, end = [], 0
        for row in rows:
            end += len(row.tokens)
            if row.draws:
                lasts.append(end - 1)
        if not lasts:
            return [[] for _ in rows]

        logits = iter(self._model.logits(hidden[lasts]).cpu().numpy())
        return [draw_all(next(logits), row.draws) if row.draws else [] for row in rows]
