"""Where a simulation's requests come from: open loop (times fixed beforehand) or closed loop (so many at a time)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from loadgen.sim.event_loop import NS_PER_MS
from loadgen.sim.requests import SimRequest, from_trace
from loadgen.traces.mooncake import TraceRequest


class Workload(Protocol):
    def planned(self) -> Iterator[SimRequest]:
        """Requests whose times are known beforehand, in order of arrival."""
        ...

    def after_end(self, now_ns: int) -> SimRequest | None:
        """A request has ended: what comes in its place, at `now_ns` or later."""
        ...


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Whatever the cluster does, requests come at their times."""

    requests: Iterable[SimRequest]

    def planned(self) -> Iterator[SimRequest]:
        return iter(self.requests)

    def after_end(self, now_ns: int) -> SimRequest | None:
        return None


class ClosedLoop:
    """`concurrency` clients, each of which sends its next request when its last one has ended."""

    def __init__(self, make: Callable[[int, int], SimRequest], concurrency: int, total: int) -> None:
        """
        Args:
            make: from (number, arrival_ns) to a request.
            total: requests.
        """
        self._make = make
        self._concurrency = concurrency
        self._total = total
        self._count = 0

    def planned(self) -> Iterator[SimRequest]:
        for _ in range(min(self._concurrency, self._total)):
            yield self._next(0)

    def after_end(self, now_ns: int) -> SimRequest | None:
        return self._next(now_ns) if self._count < self._total else None

    def _next(self, now_ns: int) -> SimRequest:
        self._count += 1
        return self._make(self._count - 1, now_ns)


def replay(trace: Sequence[TraceRequest], *, jitter_ms: float = 0.0, speedup: float = 1.0, seed: int = 0) -> OpenLoop:
    """A trace at its own times, each delayed by up to `jitter_ms` at random, all divided by `speedup`.

    Raises:
        ValueError: the jitter is negative or the speed-up not positive.
    """
    if jitter_ms < 0 or speedup <= 0:
        raise ValueError("jitter_ms must not be negative and speedup must be above 0")
    jitter = np.random.default_rng(seed).uniform(0.0, 1.0, len(trace)) * jitter_ms
    times = [(each.arrival_ms + late) / speedup for each, late in zip(trace, jitter.tolist(), strict=True)]
    order = sorted(range(len(trace)), key=lambda index: (times[index], index))
    return OpenLoop([from_trace(index, trace[index], round(times[index] * NS_PER_MS)) for index in order])
