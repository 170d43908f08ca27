"""What every engine is measured on: made-up prompts, so that nothing is cached, and the same shapes for all."""

from __future__ import annotations

import random
from typing import Protocol

PREFILL_LENGTHS = (512, 2048)  # tokens of one prompt
BATCHES = (1, 4, 16, 32)  # sequences that decode together
CONTEXT = 512  # tokens a decoding sequence has behind it, in the middle of a measurement
DECODE_STEPS = 16  # of one measurement
CHUNK = 512  # tokens of a prompt that one step computes
FIRST_ID, LAST_ID = 100, 40_000  # ordinary tokens in every model we would measure


class Measured(Protocol):
    """An engine under measurement."""

    def prefill(self, length: int) -> float:
        """Prompt tokens per second for one prompt, until its first token."""
        ...

    def decode(self, batch: int) -> float:
        """Tokens per second of all sequences together, at `CONTEXT`."""
        ...


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(FIRST_ID, LAST_ID) for _ in range(length)]
