"""When requests are sent: decided before a run begins, from a seed, whatever the server does. Pure.

A rate over time and a way of spacing are independent of each other: gaps of mean 1 are drawn in "operational time"
(how many requests should have come by now) and carried to seconds by the inverse of the rate's integral. So a burst
or a Poisson process keeps its shape on a ramp and over steps (Çınlar, Introduction to Stochastic Processes, 1975, on
the time change of a Poisson process).

Knows nothing about what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]  # milliseconds from the start of the run, ascending
Spacing = Literal["poisson", "gamma", "constant"]


class Piece(msgspec.Struct, frozen=True):
    """A stretch in which the rate goes in a straight line from `start` to `end`, both in requests a second."""

    duration_s: float | None  # none: for ever, if the rate is level
    start: float
    end: float

    def __post_init__(self) -> None:
        if not self.length_s > 0 or self.start < 0 or self.end < 0 or self.start + self.end == 0:
            raise ValueError("a piece of a rate lasts longer than 0 s, and its rate is above 0 somewhere")
        if self.duration_s is None and self.start != self.end:
            raise ValueError("a ramp needs an end: say how long the run is")

    @property
    def length_s(self) -> float:
        return math.inf if self.duration_s is None else self.duration_s

    @property
    def expected(self) -> float:
        """Requests in it, on average."""
        return self.length_s * (self.start + self.end) / 2

    def when(self, counts: Times) -> Times:
        """Seconds into the piece by which so many requests are expected."""
        slope = (self.end - self.start) / self.length_s
        if slope == 0:
            return counts / self.start
        # start·t + slope·t²/2 = count, solved in the form that does not cancel for small slopes.
        root = np.sqrt(np.maximum(self.start**2 + 2 * slope * counts, 0.0))
        return np.minimum(2 * counts / np.maximum(self.start + root, 1e-300), self.length_s)


class OpenLoop(msgspec.Struct, frozen=True, tag="open"):
    """Requests come at their times. `burstiness` is the gamma distribution's shape: 1 is Poisson, below it bursts
    (squared coefficient of variation 1 / burstiness), above it more regular."""

    pieces: tuple[Piece, ...]
    spacing: Spacing = "poisson"
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("an open loop needs a rate")
        if not self.burstiness > 0:
            raise ValueError(f"burstiness is {self.burstiness:g}; it must be above 0")


class TraceTimes(msgspec.Struct, frozen=True, tag="trace"):
    """The workload's own times, each delayed by up to `jitter_ms` at random, all divided by `speedup`."""

    speedup: float = 1.0
    jitter_ms: float = 0.0

    def __post_init__(self) -> None:
        if not self.speedup > 0 or self.jitter_ms < 0:
            raise ValueError("the speed-up must be above 0, the jitter not below 0 ms")


class ClosedLoop(msgspec.Struct, frozen=True, tag="closed"):
    """So many clients, each of which sends its next request when its last one has ended."""

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}; it must be at least 1")


Arrivals = OpenLoop | TraceTimes | ClosedLoop


def open_loop_times_ms(arrivals: OpenLoop, seed: int, max_requests: int | None = None) -> Times:
    """Send times until the rate ends, or the first `max_requests` of them.

    Raises:
        ValueError: neither the rate nor the number of requests ends.
    """
    ends = np.cumsum([0.0, *(piece.length_s for piece in arrivals.pieces)])
    expected = np.cumsum([0.0, *(piece.expected for piece in arrivals.pieces)])
    if max_requests is None and math.isinf(expected[-1]):
        raise ValueError("say how many requests, or how long")
    counts = _operational_times(arrivals, seed, expected[-1], max_requests)
    index = np.minimum(np.searchsorted(expected, counts, side="right") - 1, len(arrivals.pieces) - 1)
    times = np.empty_like(counts)
    for number, piece in enumerate(arrivals.pieces):
        mine = index == number
        times[mine] = ends[number] + piece.when(counts[mine] - expected[number])
    return np.maximum.accumulate(times * 1e3)


def trace_times_ms(recorded_ms: Sequence[float], arrivals: TraceTimes, seed: int) -> tuple[Times, NDArray[np.intp]]:
    """The times, ascending, and which recorded request each belongs to: jitter changes the order."""
    rng = np.random.default_rng(seed)
    times = (np.asarray(recorded_ms, np.float64) + rng.uniform(0, arrivals.jitter_ms, len(recorded_ms))) / (
        arrivals.speedup
    )
    order = np.argsort(times, kind="stable")
    return times[order], order


def parse_rate(text: str, duration_s: float | None) -> tuple[Piece, ...]:
    """`10` level, `1..20` a ramp over the run, `5|10|20` equal steps, all in requests a second.

    Raises:
        ValueError: it is none of these, or a ramp or steps without a duration.
    """
    try:
        if ".." in text:
            start, end = (float(part) for part in text.split(".."))
            return (Piece(duration_s, start, end),)
        rates = [float(part) for part in text.split("|")]
    except ValueError as error:
        raise ValueError(f"rate {text!r}: {error}; write 10, 1..20 or 5|10|20") from None
    if len(rates) > 1 and duration_s is None:
        raise ValueError("steps need an end: say how long the run is")
    length = None if duration_s is None else duration_s / len(rates)
    return tuple(Piece(length, rate, rate) for rate in rates)


def describe(arrivals: Arrivals) -> str:
    """In a few words, for a label."""
    match arrivals:
        case ClosedLoop(concurrency=concurrency):
            return f"{concurrency} at a time"
        case TraceTimes(speedup=speedup):
            return "trace times" if speedup == 1 else f"trace times × {speedup:g}"
        case OpenLoop(pieces=pieces, spacing=spacing):
            ends = [f"{pieces[0].start:g}", f"{pieces[-1].end:g}"]
            return f"{'–'.join(dict.fromkeys(ends))}/s {spacing}"


def _operational_times(arrivals: OpenLoop, seed: int, total: float, max_requests: int | None) -> Times:
    """Running sums of gaps of mean 1, below `total`."""
    if arrivals.spacing == "constant":
        number = math.ceil(total) if max_requests is None else max_requests
        times = np.arange(number, dtype=np.float64)
        return times[times < total]
    rng = np.random.default_rng(seed)
    shape = arrivals.burstiness if arrivals.spacing == "gamma" else 1.0
    found: list[Times] = []
    reached, number = 0.0, 0
    while reached < total and (max_requests is None or number < max_requests):
        # A fixed size of draw, so that a longer run begins with the times of a shorter one.
        sums = reached + np.cumsum(rng.gamma(shape, 1 / shape, 1024))
        found.append(sums)
        reached, number = float(sums[-1]), number + len(sums)
    times = np.concatenate(found) if found else np.empty(0)
    return times[times < total][:max_requests]
