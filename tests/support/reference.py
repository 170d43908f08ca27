"""What one engine in this process says: the answer to compare a cluster's with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from diptych.config import WeightForm
from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.limits import Limits
from diptych.engine.torch_runner import TorchRunner
from diptych.messages import SamplingParams
from diptych.model_folder import ModelFolder

BLOCK = 16
FIRST_PLAIN_ID, NUM_PLAIN_IDS = 3, 256  # of the tiny model: every byte, without special tokens and merges


def random_prompt(length: int, seed: int) -> list[int]:
    """Token ids; prompts of different seeds share no prefix worth the name."""
    rng = random.Random(seed)
    return [FIRST_PLAIN_ID + rng.randrange(NUM_PLAIN_IDS) for _ in range(length)]


class Reference:
    def __init__(self, model: Path, weights: WeightForm = "full") -> None:
        self._folder = ModelFolder(model)
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}
        self._runner = TorchRunner.load(
            self._folder, kv_cache_bytes=8 << 20, block_size=BLOCK, device="cpu", threads=1, weights=weights
        )

    def tokens(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Greedy and without a stop token. No KV is shared between calls."""
        asked = (tuple(prompt), max_tokens)
        if asked not in self._known:
            self._known[asked] = self._compute(prompt, max_tokens)
        return self._known[asked]

    def _compute(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        engine = Engine(self._runner, Limits(64, 8, BLOCK, self._folder.spec.max_context))
        sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)
        engine.add(EngineRequest("reference", Kind.LOCAL, tuple(prompt), sampling, bytes(32)))
        tokens: list[int] = []
        while engine.has_work:
            tokens += [token for update in engine.step().updates for token in update.token_ids]
        return tokens
