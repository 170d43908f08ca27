"""The figures of one run, as they are written to its JSON. Shapes only; `measures` computes them."""

from __future__ import annotations

import msgspec

from loadgen.report.intervals import Interval
from loadgen.report.phases import Phases

QUANTILES = (0, 1, 2, 5, *range(10, 90, 5), 90, 92, 94, 95, 96, 97, 98, 99, 99.5, 100)  # percent, of a distribution


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds, over measured requests that succeeded (ITL: over their gaps)."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    quantiles: list[float]  # at QUANTILES
    intervals: dict[str, Interval] = {}  # of mean, p50, p90, p95, p99: block bootstrap


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that met both limits. A failed one missed them, and so did one whose answer was shorter than it had to
    be; one that came in one piece, or has a single token, has no TPOT to miss."""

    ttft_limit_ms: float
    tpot_limit_ms: float
    attainment: float  # share of the measured requests
    attainment_interval: Interval | None
    requests_per_s: float  # open loop: measured ones that met them; closed loop: all that did and ended in the window

    @property
    def said(self) -> str:
        return f"TTFT ≤ {self.ttft_limit_ms:g} ms, TPOT ≤ {self.tpot_limit_ms:g} ms"


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of prompt tokens, by the server's account; none where it gives none."""

    hit_rate: float | None
    predicted_hit_rate: float | None
    possible_hit_rate: float  # with one cache without an end, from the plan, counted over whole blocks


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """How the measuring side itself did."""

    lag_p99_ms: float
    lag_max_ms: float
    loop_lag_p99_ms: float
    cpu_share_max: float  # of one core, of the busiest process
    processes: int
    connections: int
    retried: int


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """In slots of equal length, from the start of the run to its last answer."""

    slot_s: float
    sent: list[int]
    ended: list[int]
    failed: list[int]
    in_flight: list[int]  # at the end of the slot
    output_tokens: list[int]
    ttft_p50_ms: list[float | None]  # of requests sent in the slot
    ttft_p99_ms: list[float | None]
    in_phase: dict[str, list[float]] = {}  # requests in it, mean over the slot; empty where the server does not say
    busy_workers: dict[str, list[float]] = {}  # with a request in this phase, mean over the slot; likewise


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    window_s: float  # from warm-up's end to the tail's beginning; see `loadgen.report.window`
    sent: int
    warmup: int
    measured: int
    tail: int
    succeeded: int  # of the measured
    failures: dict[str, int]  # of the measured, by kind
    refused: int  # of those: 429 and 503
    failed_outside: int  # in warm-up and tail
    short_answers: int  # succeeded, with fewer tokens than they might have had, by the server's count
    offered_per_s: float  # measured requests; in a closed loop the server sets their pace
    requests_per_s: float  # answers that ended whole in the window
    input_tokens_per_s: float  # prompt tokens of requests whose first token came in the window
    output_tokens_per_s: float  # tokens that came in the window
    latencies: dict[str, Distribution]  # ttft, tpot, itl, e2e; without those that nothing was measured of
    itl_basis: str  # "tokens" where the server says how many an event holds, else "events"
    tpot_basis: str = "tokens"  # where the server says how many an answer has, else "events"
    lumps: int = 0  # succeeded, in one event with several tokens: without a TPOT
    goodput: Goodput
    cache: Cache
    phases: Phases | None = None  # where the server reports what they cost
    generator: Generator
    timeline: Timeline
    by_label: dict[str, dict[str, float]] = {}  # a few figures of each class, if there is more than one
