"""Requests at a rate that changes, and what is known of that rate. Poisson arrivals, log-normal lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from loadgen.arrivals import OpenLoop as Arrivals
from loadgen.arrivals import Piece, open_loop_times_ms
from loadgen.sim.event_loop import NS_PER_MS
from loadgen.sim.requests import SimRequest


@dataclass(frozen=True, slots=True)
class Load:
    """Requests at a rate that changes."""

    name: str
    pieces: tuple[Piece, ...]
    prompt_tokens: float  # mean of a log-normal distribution
    output_tokens: float  # likewise
    sigma: float = 0.7  # of the logarithm, of both

    @property
    def duration_s(self) -> float:
        return sum(piece.length_s for piece in self.pieces)

    @property
    def peak(self) -> float:
        """Requests a second."""
        return max(max(piece.start, piece.end) for piece in self.pieces)

    @property
    def mean(self) -> float:
        return sum(piece.expected for piece in self.pieces) / self.duration_s

    def highest(self, from_s: float, to_s: float) -> float:
        """Rate between two times, both included; 0 after the end."""
        found, begin_s = 0.0, 0.0
        for piece in self.pieces:
            end_s = begin_s + piece.length_s
            if begin_s <= to_s and from_s < end_s:
                slope = (piece.end - piece.start) / piece.length_s
                edges_s = (max(from_s - begin_s, 0.0), min(to_s - begin_s, piece.length_s))
                found = max(found, *(piece.start + slope * at_s for at_s in edges_s))
            begin_s = end_s
        return found

    def is_level(self, from_s: float, to_s: float) -> bool:
        """Whether the rate is the same all the time between; it is not if that begins before the load does."""
        begins_s = [0.0, *accumulate(piece.length_s for piece in self.pieces)]
        within = [
            piece
            for piece, begin_s in zip(self.pieces, begins_s, strict=False)
            if begin_s < to_s and from_s < begin_s + piece.length_s
        ]
        rates = {rate for piece in within for rate in (piece.start, piece.end)}
        return from_s >= 0.0 and to_s <= begins_s[-1] and len(rates) == 1

    def requests(self, seed: int) -> list[SimRequest]:
        """Poisson arrivals; no two share a prefix."""
        times_ms = open_loop_times_ms(Arrivals(self.pieces), seed)
        rng = np.random.default_rng(seed + 1)
        prompts = self._lengths(rng, len(times_ms), self.prompt_tokens)
        outputs = self._lengths(rng, len(times_ms), self.output_tokens)
        rows = zip(times_ms.tolist(), prompts, outputs, strict=True)
        return [SimRequest(n, round(ms * NS_PER_MS), prompt, out) for n, (ms, prompt, out) in enumerate(rows)]

    def _lengths(self, rng: np.random.Generator, count: int, mean: float) -> list[int]:
        """At most ten times the mean."""
        drawn = rng.lognormal(math.log(mean) - self.sigma**2 / 2, self.sigma, count)
        return [int(min(max(2, length), 10 * mean)) for length in drawn]
