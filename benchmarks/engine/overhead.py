"""How much of a decode step is not arithmetic.

A second engine with a clock around every matrix product, attention and row operation. What is left of a step is
scheduling, planning, sampling, Python between the calls, and the clock itself, so the share is rather too high.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from benchmarks.engine.ours import BLOCK_SIZE, Ours
from diptych.engine.backend import choose_backend
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.engine.rope import RotaryEmbedding
from diptych.engine.torch_runner import TorchRunner
from diptych.engine.weights import LayerWeights, load_weights
from diptych.model_folder import ModelFolder

T = TypeVar("T")


class Stopwatch:
    """Adds up the seconds spent in the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., T]) -> Callable[..., T]:
        def timed(*arguments: Any) -> T:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - began
            return result

        return timed

    def wrap_methods(self, target: object, *names: str) -> None:
        for name in names:
            setattr(target, name, self.wrap(getattr(target, name)))


class OverheadProbe:
    def __init__(self, folder: ModelFolder, kv_cache_bytes: int) -> None:
        watch = Stopwatch()
        runner = _watched_runner(folder, kv_cache_bytes, watch)
        self._ours = Ours(runner, folder.spec.max_context, arithmetic=lambda: watch.seconds)

    def share(self, batch: int) -> float:
        """0 to 1, of the typical step."""
        steps = self._ours.decode_steps(batch)
        return statistics.median(1 - step.arithmetic_seconds / step.seconds for step in steps)


@torch.inference_mode()
def _watched_runner(folder: ModelFolder, kv_cache_bytes: int, watch: Stopwatch) -> TorchRunner:
    """As `TorchRunner.load` makes one."""
    spec, dtype, device = folder.spec, torch.float32, torch.device("cpu")
    cache = KVCache(
        capacity_bytes=kv_cache_bytes,
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        block_size=BLOCK_SIZE,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
    )
    backend = choose_backend("auto", spec, device, dtype)
    attention, ops = backend.attention(cache, spec), backend.row_ops(spec)
    watch.wrap_methods(attention, "run")
    watch.wrap_methods(ops, "add_norm", "rotate", "silu_mul")
    weights = load_weights(folder, dtype, device)
    layers = [_watched_layer(layer, watch) for layer in weights.layers]
    weights = replace(weights, layers=layers, head=watch.wrap(weights.head))
    model = Model(spec, weights, RotaryEmbedding(spec, device, dtype), attention, ops)
    return TorchRunner(model, cache, attention, exact=False)  # nobody asks this one


def _watched_layer(layer: LayerWeights, watch: Stopwatch) -> LayerWeights:
    return replace(
        layer,
        qkv=watch.wrap(layer.qkv),
        output=watch.wrap(layer.output),
        gate_up=watch.wrap(layer.gate_up),
        down=watch.wrap(layer.down),
    )
