"""The same engine without a cluster around it, in this process: what a first token costs at least."""

from __future__ import annotations

import time

from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.limits import Limits
from diptych.engine.torch_runner import TorchRunner
from diptych.messages import SamplingParams
from diptych.model_folder import ModelFolder


class SingleEngine:
    """
    Args:
        limits: those of the cluster's workers.
    """

    def __init__(self, model: ModelFolder, kv_cache_bytes: int, limits: Limits, threads: int) -> None:
        runner = TorchRunner.load(
            model, kv_cache_bytes=kv_cache_bytes, block_size=limits.block_size, device="cpu", threads=threads
        )
        self._engine = Engine(runner, limits)
        self._num_requests = 0

    def ttft_ms(self, prompt: list[int], max_tokens: int) -> float:
        """From handing in a prompt that is not cached to its first token; it is then computed to the end."""
        self._num_requests += 1
        sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)
        request = EngineRequest(f"request {self._num_requests}", Kind.LOCAL, tuple(prompt), sampling, bytes(32))
        first_at, began = 0.0, time.monotonic()
        self._engine.add(request)
        while self._engine.has_work:
            updates = self._engine.step().updates
            if updates and not first_at:
                first_at = time.monotonic()
        return (first_at - began) * 1e3
