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

from diptych.config import WeightForm
from diptych.engine.attention import PagedAttention
from diptych.engine.backend import Backend, KernelChoice, choose_backend
from diptych.engine.cuda_graphs import CudaRecorder, DecodeGraphs, GraphableAttention, Recorder, record_decode_graphs
from diptych.engine.device import find_placement, use_device, wait_for
from diptych.engine.exactness import EXACT, SAME_PATH, ProbeParts, rows_are_exact
from diptych.engine.interface import Draw, Drawn, Plan, Row
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.engine.quality import ModelParts, Quality, default_cache, load_checked
from diptych.engine.rope import RotaryEmbedding
from diptych.engine.sampler import draw_all
from diptych.engine.weights import ModelWeights, load_weights
from diptych.model_folder import ModelFolder
from diptych.model_spec import ModelSpec

log = logging.getLogger(__name__)


class TorchRunner:
    """A `Runner` (`diptych.engine.interface`). Not thread-safe: one thread executes plans.

    Attributes:
        dtype: of weights and KV, as in `ModelFolder.fingerprint`
        exact: a row's numbers do not depend on chunks, batch mates or block tables, to the last bit; checked at load
        attention_name: which attention computes, for people
        weights: in which form they are kept
        weight_bytes: that all matrices take; 0 where nobody counted
        quality: what quantized weights reached; None for full ones
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        attention: PagedAttention,
        *,
        exact: bool,
        weights: WeightForm = "full",
        weight_bytes: int = 0,
        quality: Quality | None = None,
    ) -> None:
        self.exact = exact
        self.weights = weights
        self.weight_bytes = weight_bytes
        self.quality = quality
        self.attention_name = attention.name
        self._model = model
        self._cache = cache
        self._attention = attention
        self._graphs: DecodeGraphs | None = None
        self.num_blocks = cache.num_blocks
        self.num_scratch_blocks = cache.num_scratch_blocks
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
        dtype: str | None = None,
        max_running: int = 64,
        progress: Callable[[str, float], None] | None = None,
        kernels: KernelChoice = "auto",
        weights: WeightForm = "full",
    ) -> TorchRunner:
        """Load a model and allocate its KV pool. Sets torch's thread count for the whole process.

        Args:
            device, dtype: see `diptych.engine.device.find_placement`.
            max_running: sequences in the longest decode step; on CUDA, up to that many are computed by recorded graphs.
            weights: "int8" (on CPU) is served only if it predicts text as well as "full" (`diptych.engine.quality`).

        Raises:
            ValueError: the folder's weights do not fit its config, `kv_cache_bytes` holds not even one block, the
                device or the kernels asked for cannot be had, the device does not compute in this dtype, or int8
                weights change the model too much.
        """
        torch.set_num_threads(threads)
        place = find_placement(device, dtype)
        spec = folder.spec
        cache = KVCache(
            capacity_bytes=kv_cache_bytes,
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            block_size=block_size,
            head_dim=spec.head_dim,
            dtype=place.dtype,
            device=place.device,
            num_scratch_blocks=1 if place.device.type == "cpu" else 2,  # to probe connections; to pad recorded steps
        )
        with torch.inference_mode(), use_device(place.device):
            backend = choose_backend(kernels, spec, place.device, place.dtype)
            attention = backend.attention(cache, spec)
            rope = RotaryEmbedding(spec, place.device, place.dtype)
            parts = ModelParts(
                folder,
                place.dtype,
                place.device,
                lambda form: load_weights(
                    folder, place.dtype, place.device, progress, form=form, kernels=backend.kernels
                ),
                lambda own: backend.attention(own, spec),
                lambda matrices, over: Model(spec, matrices, rope, over, backend.row_ops(spec)),
            )
            if weights == "full":
                loaded, quality = parts.load("full"), None
            else:
                loaded, quality = load_checked(parts, weights, default_cache())
            exact = _check_exactness(spec, loaded, rope, backend, cache, attention.name)
            model = parts.make_model(loaded, attention)
            runner = cls(
                model,
                cache,
                attention,
                exact=exact,
                weights=weights,
                weight_bytes=loaded.num_bytes,
                quality=quality,
            )
            if place.device.type == "cuda":
                runner.record_graphs(CudaRecorder(place.device), max_running, spec.max_context)
        return runner

    def record_graphs(self, record: Recorder, max_batch: int, max_context: int) -> None:
        """Record decode steps of up to `max_batch` sequences, where the attention can. Before anything is computed."""
        if isinstance(self._attention, GraphableAttention):
            self._graphs = record_decode_graphs(
                self._model.forward,
                self._compute,
                self._attention,
                self._cache,
                record,
                max_batch=max_batch,
                max_context=max_context,
            )

    @torch.inference_mode()
    def execute(self, plan: Plan, kv_written: Callable[[], None] | None = None) -> list[list[Drawn]]:
        with use_device(self._cache.device):
            drawn = self._execute(plan, kv_written)
            # The caller declares this step's blocks ready and hands them to NIXL, which reads them from a thread and
            # streams of its own. A step that draws nothing has not waited for its kernels yet.
            wait_for(self._cache.device)
        return drawn

    def clear_tail(self, block: int, num_tokens: int) -> None:
        self._cache.clear_tail(block, num_tokens)
        wait_for(self._cache.device)  # as in `execute`: the block is about to be sent

    def _execute(self, plan: Plan, kv_written: Callable[[], None] | None) -> list[list[Drawn]]:
        for source, destination in plan.copies:
            self._cache.copy_block(source, destination)
        if not plan.rows:
            return []

        self._clean_new_blocks(plan.rows)
        hidden = self._graphs.run(plan.rows) if self._graphs is not None else None
        hidden = self._compute(plan.rows) if hidden is None else hidden
        if kv_written is not None:
            wait_for(self._cache.device)
            kv_written()
        return self._draw(plan.rows, hidden)

    def _compute(self, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states [num_tokens or more, hidden_size]."""
        device = self._cache.device
        tokens = torch.tensor([token for row in rows for token in row.tokens], device=device)
        positions = torch.cat([torch.arange(row.start, row.start + len(row.tokens)) for row in rows]).to(device)
        return self._model.forward(tokens, positions, self._attention.plan(rows))

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
    spec: ModelSpec, weights: ModelWeights, rope: RotaryEmbedding, backend: Backend, cache: KVCache, name: str
) -> bool:
    """Ask the first layer and the head, and say aloud what holds."""
    began = time.perf_counter()
    slice_ = replace(weights, layers=weights.layers[:1])
    parts = ProbeParts(
        spec,
        cache.block_size,
        cache.pool.dtype,
        cache.device,
        make_attention=lambda own: backend.attention(own, spec),
        make_model=lambda attention: Model(spec, slice_, rope, attention, backend.row_ops(spec)),
    )
    exact = rows_are_exact(parts)
    took_ms = (time.perf_counter() - began) * 1e3
    if exact:
        log.info("%s; %s (checked in %.0f ms)", EXACT, name, took_ms)
    elif cache.device.type == "cpu":
        log.warning("%s; %s (checked in %.0f ms)", SAME_PATH, name, took_ms)
    else:
        log.warning("%s; %s (%s: exactness is not promised there)", SAME_PATH, name, cache.device)
    return exact
