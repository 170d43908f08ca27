"""Traffic to plan for: what a user recorded, in any format that is known, or a generator at a rate.

Seeds move arrivals: recorded times by a jitter, a rate by another draw of a Poisson process. What
is asked for stays the same. So the spread over seeds says how much an answer owes to exact times, and nothing about
another day's traffic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadgen.arrivals import OpenLoop as Rate
from loadgen.arrivals import Piece, open_loop_times_ms
from loadgen.planner.usage import check_times
from loadgen.sim.event_loop import NS_PER_MS
from loadgen.sim.requests import from_trace
from loadgen.sim.workload import OpenLoop, replay
from loadgen.traces.mooncake import TraceRequest, quantum_ms
from loadgen.traces.recognise import recognise
from loadgen.traces.request_log import write_request_log
from loadgen.workloads.generators import GENERATORS
from loadgen.workloads.spec import READERS, make_workload
from loadgen.workloads.workload import Workload, clipped

KINDS = (*READERS, "sharegpt", "log")


@dataclass(frozen=True, slots=True)
class Traffic:
    """
    Attributes:
        name: for people: the file's name or the generator.
        spec: as `loadgen.workloads.spec` reads it.
        rate: requests/s; 0: at the recorded times.
        jitter_ms: of recorded times, before the speed-up.
        limits: tokens in and out, to which the requests are cut; None: any.
    """

    name: str
    spec: str
    requests: Sequence[TraceRequest]
    labels: Sequence[str]
    rate: float = 0.0
    jitter_ms: float = 0.0
    speedup: float = 1.0
    limits: tuple[int | None, int | None] = (None, None)

    @property
    def duration_s(self) -> float:
        if self.rate:
            return len(self.requests) / self.rate
        return (self.requests[-1].arrival_ms - self.requests[0].arrival_ms) / self.speedup / 1e3

    @property
    def block_tokens(self) -> int:
        """Of the prompts' hash ids; the engine's block has to divide it."""
        return self.requests[0].block_tokens

    def arrivals(self, seed: int) -> OpenLoop:
        if not self.rate:
            return replay(self.requests, jitter_ms=self.jitter_ms, speedup=self.speedup, seed=seed)
        times = open_loop_times_ms(Rate((Piece(None, self.rate, self.rate),)), seed, len(self.requests)).tolist()
        pairs = enumerate(zip(self.requests, times, strict=True))
        return OpenLoop([from_trace(number, each, round(ms * NS_PER_MS)) for number, (each, ms) in pairs])


def read_workload(trace: str, num_requests: int | None = None) -> tuple[str, Workload]:
    """A file in a known format, `FORMAT:FILE` or a generator; with its name for `loadgen.workloads.spec`.

    Raises:
        ValueError: it is none of these, or a line is not of the format.
        OSError: the file cannot be read.
    """
    spec = _spec_of(trace)
    workload = make_workload(spec, num_requests, seed=0)
    if not workload.requests:
        raise ValueError(f"there is no request in {trace}")
    return spec, workload


def digest_of(requests: Sequence[TraceRequest], labels: Sequence[str]) -> str:
    """SHA-256 over every request as our log writes it: the same for a file and a copy in another format."""
    digest = hashlib.sha256()
    for line in write_request_log(requests, labels):
        digest.update(line)
    return digest.hexdigest()


def is_generator(trace: str) -> bool:
    """It makes requests without an end, where a file has as many as it has."""
    return not Path(trace).exists() and _kind_of(trace) in GENERATORS


def _spec_of(trace: str) -> str:
    path = Path(trace)
    if path.exists():
        return f"{recognise(path)}:{path}"
    if _kind_of(trace) not in (*KINDS, *GENERATORS):
        known = ", ".join((*GENERATORS, *KINDS))
        raise ValueError(f"{trace}: there is no such file, and its beginning is none of {known}")
    return trace


def _kind_of(trace: str) -> str:
    """What comes before the first ":", of a mixture its first part without the weight."""
    return trace.partition(":")[0].partition("+")[0].rpartition("*")[2]


def load_traffic(
    trace: str,
    *,
    num_requests: int | None = None,
    rate: float = 0.0,
    speedup: float = 1.0,
    jitter_ms: float | None = None,
    max_input: int | None = None,
    max_output: int | None = None,
) -> Traffic:
    """
    Args:
        rate: instead of recorded times.
        jitter_ms: None: as much as the timestamps leave open, at least a mean gap, so that seeds differ at all.
        max_input, max_output: tokens; what is longer is cut.

    Raises:
        WrongUsage: a rate or a speed-up makes no sense.
        ValueError: the trace is not of its format, or has no times and there is no rate.
        OSError: the file cannot be read.
    """
    check_times(rate, speedup)
    spec, workload = read_workload(trace, num_requests)
    if not workload.timed and not rate:
        raise ValueError(f"{trace} has no times of its own; give a rate")
    limits = max_input, max_output
    workload = clipped(workload, *limits)
    found = Traffic(Path(trace).name, spec, workload.requests, workload.labels, rate, 0.0, speedup, limits)
    if rate:
        return found
    return replace(found, jitter_ms=default_jitter_ms(workload.requests) if jitter_ms is None else jitter_ms)


def default_jitter_ms(requests: Sequence[TraceRequest]) -> float:
    mean_gap_ms = (requests[-1].arrival_ms - requests[0].arrival_ms) / max(1, len(requests) - 1)
    return max(quantum_ms(requests), mean_gap_ms)
