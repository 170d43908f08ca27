"""Pairs of workers between which a transfer has just failed: avoided for a while, then trusted again.

Nothing latches: suspicion ends by itself after `SUSPECT_S`, or with the first transfer that succeeds. Knows no clock;
the time is given (seconds, monotonic).
"""

from __future__ import annotations

from router.placement import Avoid, Pair

SUSPECT_S = 10.0  # a pair that stays broken costs one request in so many seconds a retry


class Suspects:
    def __init__(self) -> None:
        self._until: dict[Pair, float] = {}

    def suspect(self, pair: Pair, now: float) -> None:
        self._until[pair] = now + SUSPECT_S

    def trust(self, pair: Pair) -> None:
        self._until.pop(pair, None)

    def avoid(self, now: float) -> Avoid:
        """What to avoid at this moment."""
        for pair in [pair for pair, until in self._until.items() if until <= now]:
            del self._until[pair]
        return Avoid(pairs=frozenset(self._until))
