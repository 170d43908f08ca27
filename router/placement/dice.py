"""Randomness as a function of two numbers: the same seed and turn give the same draws, on every machine.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a step costs well
under a microsecond, where seeding a Mersenne twister for each placement would cost more than the placement's sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class Dice:
    def __init__(self, seed: int, turn: int) -> None:
        self._state = _mix(seed * _GOLDEN_GAMMA & _MASK) ^ (turn * _GOLDEN_GAMMA & _MASK)

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1. The bias is below limit / 2^64."""
        self._state = (self._state + _GOLDEN_GAMMA) & _MASK
        return _mix(self._state) * limit >> 64

    def rotated(self, items: Sequence[Item]) -> list[Item]:
        """The same ring of items from another start: a stable sort then spreads what is equal."""
        start = self.below(len(items)) if items else 0
        return [*items[start:], *items[:start]]


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
