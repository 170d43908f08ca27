"""Distributions of lengths in tokens, written in a word and drawn from a seed. Pure."""

from __future__ import annotations

import math

import msgspec
import numpy as np

HELP = "write 512, 100..900 (uniform), 128|1024 (one of them) or 600~0.5 (log-normal: median and sigma)"


class Lengths(msgspec.Struct, frozen=True):
    """`low` to `high` uniform, or log-normal with a median and a sigma, or one of `choices`. In tokens, at least 1."""

    low: int = 1
    high: int = 1
    median: float = 0.0
    sigma: float = 0.0
    choices: tuple[int, ...] = ()

    def draw(self, rng: np.random.Generator) -> int:
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.median:
            return max(1, round(self.median * math.exp(self.sigma * rng.standard_normal())))
        return int(rng.integers(self.low, self.high + 1))


def parse_lengths(text: str) -> Lengths:
    """
    Raises:
        ValueError: it is none of the forms in `HELP`, or a length is below 1.
    """
    try:
        made = _parse(text.strip())
    except ValueError:
        raise ValueError(f"lengths {text!r}: {HELP}") from None
    if min((*made.choices, made.low)) < 1 or made.high < made.low or made.median < 0 or made.sigma < 0:
        raise ValueError(f"lengths {text!r}: at least 1 token, and not from more to less")
    return made


def _parse(text: str) -> Lengths:
    if "|" in text:
        return Lengths(choices=tuple(int(part) for part in text.split("|")))
    if "~" in text:
        median, sigma = (float(part) for part in text.split("~"))
        if median < 1:
            raise ValueError
        return Lengths(median=median, sigma=sigma)
    low, _, high = text.partition("..")
    return Lengths(int(low), int(high or low))
