"""Executes plans with torch: the copies, one forward pass over all rows, then each row's draws.

Knows nothing about requests, block ownership or time; the scheduler decided all of that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

import torch

from diptych.engine.attention import PagedAttention
from diptych.engine.backend import Backend, KernelChoice, choose_backend
from diptych.engine.exactness import EXACT, SAME_PATH, ProbeParts, rows_are_exact
from diptych.engine.interface import Draw, Drawn, Plan, Row
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.engine.rope import RotaryEmbedding
from diptych.engine.sampler import draw_all
from diptych.engine.weights import ModelWeights, load_weights
from diptych.model_folder import ModelFolder
from diptych.model_spec import ModelSpec

log = logging.getLogger(__name__)


class TorchRunner:
    """A `Runner` (`diptych.engine.interface`). Not thread-safe: one thread executes plans.

    Attributes:
        dtype: of weights and KV, as in `ModelFolder.fingerprint` ("float32" on CPU)
        exact: a row's numbers do not depend on chunks, batch mates or block tables, to the last bit; checked at load
        attention_name: which attention computes, for people
    """

    def __init__(self, model: Model, cache: KVCache, attention: PagedAttention, *, exact: bool) -> None:
        self.exact = exact
        self.attention_name = attention.name
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
        kernels: KernelChoice = "auto",
    ) -> TorchRunner:
        """Load a model and allocate its KV pool. Sets torch's thread count for the whole process.

        Raises:
            ValueError: the folder's weights do not fit its config, `kv_cache_bytes` holds not even one block, or the
                kernels asked for cannot be had.
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
        backend = choose_backend(kernels, spec, place, dtype)
        attention = backend.attention(cache, spec)
        with torch.inference_mode():
            weights = load_weights(folder, dtype, place, progress)
            rope = RotaryEmbedding(spec, place, dtype)
            exact = _check_exactness(spec, weights, rope, backend, cache)
        model = Model(spec, weights, rope, attention, backend.row_ops(spec))
        return cls(model, cache, attention, exact=exact)

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
        """Logits only for tokens that are drawn from. hidden: [num_tokens, hidden_size]."""
        tokens: list[int] = []  # of the step, to draw from
        spots: list[tuple[Row, list[Draw], list[Drawn]]] = []  # for each of them: what is drawn, and where it goes
        results: list[list[Drawn]] = [[] for _ in rows]
        begin = 0
        for row, result in zip(rows, results, strict=True):
            for offset, same in groupby(row.draws, key=attrgetter("offset")):
                tokens.append(begin + offset % len(row.tokens))
                spots.append((row, list(same), result))
            begin += len(row.tokens)
        if tokens:
            logits = self._model.logits(hidden[tokens]).cpu().numpy()
            for own, (row, draws, result) in zip(logits, spots, strict=True):
                if _is_valid(row, draws[0].offset, result):
                    result += draw_all(own, draws)
        return results


def _is_valid(row: Row, offset: int, drawn: Sequence[Drawn]) -> bool:
    """Whether the token at `offset` is true: known, or a guess that was drawn."""
    return offset <= 0 or (len(drawn) == offset and drawn[-1].token_id == row.tokens[offset])


def _check_exactness(
    spec: ModelSpec, weights: ModelWeights, rope: RotaryEmbedding, backend: Backend, cache: KVCache
) -> bool:
    """Ask the first layer and the head, and say aloud what holds."""
    began = time.perf_counter()
    slice_ = replace(weights, layers=weights.layers[:1])
    parts = ProbeParts(
        spec,
        cache.block_size,
        cache.pool.dtype,
        cache.pool.device,
        make_attention=lambda own: backend.attention(own, spec),
        make_model=lambda attention: Model(spec, slice_, rope, attention, backend.row_ops(spec)),
    )
    exact = rows_are_exact(parts)
    took_ms = (time.perf_counter() - began) * 1e3
    name = backend.attention(cache, spec).name
    if exact:
        log.info("%s; %s (checked in %.0f ms)", EXACT, name, took_ms)
    else:
        log.warning("%s; %s (checked in %.0f ms)", SAME_PATH, name, took_ms)
    return exact
