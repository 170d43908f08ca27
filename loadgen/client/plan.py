"""Everything about a run that is decided before it: which request, when, and which part of the run is measured. Pure.

Every process of a run makes the same plan from the same configuration and sends its own share of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.arrivals import ClosedLoop, OpenLoop, TraceTimes, open_loop_times_ms, trace_times_ms
from loadgen.client.config import RunConfig
from loadgen.client.records import Phase
from loadgen.traces.mooncake import TraceRequest
from loadgen.workloads.spec import make_workload
from loadgen.workloads.workload import Workload, clipped

NOTHING_SENT = "no request is sent in this time; make the run longer or the rate higher"
CLOSED_LOOP_REQUESTS_PER_S = 20  # planned for each client where only a duration is given; the run ends when they end


@dataclass(frozen=True, slots=True)
class Planned:
    index: int
    due_ms: float  # from the start of the run; 0 in a closed loop
    request: TraceRequest
    label: str


@dataclass(frozen=True, slots=True)
class Plan:
    requests: Sequence[Planned]
    horizon_ms: float | None  # until when an open loop sends; none of a closed one, which ends when its answers do
    ran_out: bool = False  # an open loop's workload has fewer requests than were asked for
    clients: int = 0  # of a closed loop

    def shard(self, number: int, of: int) -> Sequence[Planned]:
        """The share of one process. In a closed loop it goes by clients: all have as many requests."""
        if not self.clients:
            return self.requests[number::of]
        return [each for each in self.requests if each.index % self.clients % of == number]


def make_plan(config: RunConfig) -> Plan:
    """
    Raises:
        ValueError: the workload is not known, or nothing says when the run ends.
        OSError: a trace cannot be read.
    """
    match config.arrivals:
        case OpenLoop():
            times = open_loop_times_ms(config.arrivals, config.seed, config.num_requests)
            if not len(times):
                raise ValueError(NOTHING_SENT)
            workload = _workload(config, len(times))
            wanted, times = len(times), times[: len(workload.requests)]
            ran_out = len(times) < wanted
            order: Sequence[int] = range(len(times))
        case TraceTimes():
            workload = _workload(config, config.num_requests)
            if not workload.timed:
                raise ValueError(f"workload {config.workload!r} has no times of its own; give a rate")
            # A trace that was cut out of a longer one begins when the run does.
            first_ms = min((each.arrival_ms for each in workload.requests), default=0.0)
            recorded = [each.arrival_ms - first_ms for each in workload.requests]
            times, found = trace_times_ms(recorded, config.arrivals, config.seed)
            order = found.tolist()
            ran_out = config.duration_s is not None if config.num_requests is None else len(times) < config.num_requests
        case ClosedLoop():
            return _closed_plan(config, config.arrivals)
    end_ms = None if config.duration_s is None else config.duration_s * 1e3
    planned = [
        Planned(number, round(float(due), 3), workload.requests[which], workload.labels[which])
        for number, (due, which) in enumerate(zip(times, order, strict=True))
        if end_ms is None or due < end_ms
    ]
    if not planned:
        raise ValueError(NOTHING_SENT)
    ran_out = ran_out and len(planned) == len(times)  # or else the duration ends it
    by_duration = len(planned) < len(times) or (config.num_requests is None and isinstance(config.arrivals, OpenLoop))
    is_until = end_ms is not None and by_duration and not ran_out
    return Plan(planned, end_ms if is_until else planned[-1].due_ms, ran_out)


def phase_of(intended_ms: float, window_ms: tuple[float, float]) -> Phase:
    start, end = window_ms
    return "warmup" if intended_ms < start else "measured" if intended_ms <= end else "tail"


def window_ms(config: RunConfig, horizon_ms: float) -> tuple[float, float]:
    """From when to when requests are measured, by the time at which they were to be sent.

    Raises:
        ValueError: nothing is left between warm-up and tail.
    """
    start, end = config.warmup_s * 1e3, horizon_ms - config.tail_s * 1e3
    if end < start:
        raise ValueError(f"nothing is left of {horizon_ms / 1e3:.1f} s between warm-up and tail")
    return start, end


def _closed_plan(config: RunConfig, arrivals: ClosedLoop) -> Plan:
    number = config.num_requests
    if number is None:
        if config.duration_s is None:
            raise ValueError("say how many requests, or how long")
        number = max(arrivals.concurrency, int(arrivals.concurrency * config.duration_s * CLOSED_LOOP_REQUESTS_PER_S))
    workload = _workload(config, number)
    planned = [
        Planned(index, 0.0, *each) for index, each in enumerate(zip(workload.requests, workload.labels, strict=True))
    ]
    return Plan(planned, None, clients=arrivals.concurrency)


def _workload(config: RunConfig, num_requests: int | None) -> Workload:
    workload = make_workload(config.workload, num_requests, config.seed, config.tokenizer)
    return clipped(workload, config.max_input, config.max_output)
