"""The figures that tables show, in one list, each with how to get it and how sure it is; and runs grouped as repeats.

Repeats are runs of one configuration with different seeds: their figure is the mean over them with Student's interval.
A single run's interval comes from inside it, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from loadgen.arrivals import describe
from loadgen.report.intervals import Interval, t_interval
from loadgen.report.phases import balance
from loadgen.report.result import RunResult
from loadgen.report.summary import Summary


@dataclass(frozen=True, slots=True)
class Figure:
    key: str  # as in CSV and JSON
    title: str
    unit: str  # "ms", "1/s", "%" (of a share) or ""
    value: Callable[[Summary], float | None]
    interval: Callable[[Summary], Interval | None] = lambda _: None
    varies: bool = True  # with the server: it has an interval over repeats
    at_most: float = math.inf  # of what it can be


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    interval: Interval | None
    num_runs: int


@dataclass(frozen=True, slots=True)
class Series:
    """Repeats of one configuration."""

    label: str
    results: Sequence[RunResult]

    @property
    def first(self) -> RunResult:
        return self.results[0]

    @property
    def valid(self) -> bool:
        return all(each.valid for each in self.results)

    @property
    def simulated(self) -> bool | None:
        """Whether any run is; None: of none it is known that it is, and of some not that it is not."""
        found = {each.simulated for each in self.results}
        return True if True in found else None if None in found else False

    def estimate(self, figure: Figure) -> Estimate | None:
        """None where no run has the figure."""
        values = [value for each in self.results if (value := figure.value(each.summary)) is not None]
        if not values:
            return None
        interval = t_interval(values) if len(values) > 1 else figure.interval(self.first.summary)
        if interval is not None and figure.varies:
            highest = min(figure.at_most, 1.0 if figure.unit == "%" else math.inf)
            interval = Interval(max(0.0, interval.low), min(highest, interval.high))
        return Estimate(float(np.mean(values)), interval if figure.varies else None, len(values))


def group(results: Sequence[RunResult]) -> list[Series]:
    """In order of first appearance. Series of one title are told apart by their arrivals, or else a number."""
    groups: dict[bytes, list[RunResult]] = {}
    for result in results:
        key = msgspec.json.encode(msgspec.structs.replace(result.config, seed=0, salt=0))
        groups.setdefault(key, []).append(result)
    labels = [each[0].title for each in groups.values()]
    rates = [f"{each[0].title}, {describe(each[0].config.arrivals)}" for each in groups.values()]
    labels = [rate if labels.count(label) > 1 else label for label, rate in zip(labels, rates, strict=True)]
    numbered = [
        f"{label} #{labels[:number].count(label) + 1}" if labels.count(label) > 1 else label
        for number, label in enumerate(labels)
    ]
    return [Series(label, each) for label, each in zip(numbered, groups.values(), strict=True)]


def _latency(measure: str, name: str) -> Figure:
    def value(summary: Summary) -> float | None:
        found = summary.latencies.get(measure)
        return None if found is None else float(getattr(found, name))

    def interval(summary: Summary) -> Interval | None:
        found = summary.latencies.get(measure)
        return None if found is None else found.intervals.get(name)

    return Figure(f"{measure}_{name}_ms", f"{measure.upper()} {name}", "ms", value, interval)


LATENCIES = {
    measure: [_latency(measure, name) for name in ("mean", "p50", "p90", "p95", "p99")]
    for measure in ("ttft", "tpot", "itl", "e2e")
}
ATTAINMENT = Figure(
    "attainment", "Attainment", "%", lambda s: s.goodput.attainment, lambda s: s.goodput.attainment_interval
)


def _goodput_interval(summary: Summary) -> Interval | None:
    """Of a single run: that of its attainment, scaled to the goodput (of an open loop: at the rate offered)."""
    sure, share = summary.goodput.attainment_interval, summary.goodput.attainment
    rate = summary.goodput.requests_per_s / share if share else summary.offered_per_s
    return None if sure is None else Interval(sure.low * rate, sure.high * rate)


GOODPUT = Figure("goodput_per_s", "Goodput", "1/s", lambda s: s.goodput.requests_per_s, _goodput_interval)
OFFERED = Figure("offered_per_s", "Offered", "1/s", lambda s: s.offered_per_s, varies=False)
THROUGHPUT = [
    OFFERED,
    Figure("requests_per_s", "Answered", "1/s", lambda s: s.requests_per_s),
    Figure("input_tokens_per_s", "Tokens in", "1/s", lambda s: s.input_tokens_per_s),
    Figure("output_tokens_per_s", "Tokens out", "1/s", lambda s: s.output_tokens_per_s),
]
COUNTS = [
    Figure("measured", "Requests", "", lambda s: float(s.measured), varies=False),
    Figure("failed", "Failed", "", lambda s: float(s.measured - s.succeeded), varies=False),
    Figure("refused", "of it refused", "", lambda s: float(s.refused), varies=False),
]
CACHE = [
    Figure("hit_rate", "Cache hits", "%", lambda s: s.cache.hit_rate),
    Figure("predicted_hit_rate", "Hits predicted", "%", lambda s: s.cache.predicted_hit_rate),
    Figure("possible_hit_rate", "Hits possible", "%", lambda s: s.cache.possible_hit_rate, varies=False),
]


def _phase(phase: str, name: str, title: str) -> Figure:
    def value(summary: Summary) -> float | None:
        cost = getattr(summary.phases, phase) if summary.phases else None
        return None if cost is None else float(getattr(cost, name))

    return Figure(f"{phase}_{name}_ms", f"{title} {name}", "ms", value)


PHASE_TITLES = {
    "queue": "Queue",
    "prefill": "Prefill",
    "transfer": "Transfer",
    "exposed": "Transfer exposed",
    "decode": "Decode",
}
COSTS = {
    phase: [_phase(phase, name, title) for name in ("mean", "p50", "p99")] for phase, title in PHASE_TITLES.items()
}
BALANCES = {
    "prompt": Figure(
        "balance_prompt",
        "Balance of prompts",
        "",
        lambda s: balance(s.phases.prompt_tokens, s.phases.num_prompt_workers) if s.phases else None,
        at_most=1.0,
    ),
    "output": Figure(
        "balance_output",
        "Balance of output",
        "",
        lambda s: balance(s.phases.output_tokens, s.phases.num_output_workers) if s.phases else None,
        at_most=1.0,
    ),
}


def _busy(phase: str) -> Callable[[Summary], float | None]:
    def value(summary: Summary) -> float | None:
        found = summary.timeline.busy_workers.get(phase)
        return float(np.mean(found)) if found else None

    return value


BUSY = [
    Figure("busy_prefill_workers", "Workers in prefill", "", _busy("prefill")),
    Figure("busy_decode_workers", "Workers in decode", "", _busy("decode")),
]
PHASES = [
    Figure("remote_share", "Prefilled remotely", "%", lambda s: s.phases.remote_share if s.phases else None),
    *(figure for mine in COSTS.values() for figure in mine),
    *BALANCES.values(),
    *BUSY,
]
GENERATOR = [
    Figure("lag_p99_ms", "Schedule lag p99", "ms", lambda s: s.generator.lag_p99_ms, varies=False),
    Figure("loop_lag_p99_ms", "Loop lag p99", "ms", lambda s: s.generator.loop_lag_p99_ms, varies=False),
    Figure("cpu_share_max", "CPU of busiest process", "%", lambda s: s.generator.cpu_share_max, varies=False),
]
ALL = [
    *COUNTS,
    *THROUGHPUT,
    GOODPUT,
    ATTAINMENT,
    *(figure for figures in LATENCIES.values() for figure in figures),
    *CACHE,
    *PHASES,
    *GENERATOR,
]


def bare(value: float, unit: str) -> str:
    """Three digits that mean something, or whole thousands; without the unit. Shares are in percent."""
    if unit == "%":
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def shown(value: float, unit: str) -> str:
    return bare(value, unit) + ("/s" if unit == "1/s" else f" {unit}" if unit else "")


def shown_estimate(estimate: Estimate | None, unit: str) -> str:
    """`12.3 ms [11.9, 12.8]`, or a dash."""
    if estimate is None:
        return "–"
    text, interval = shown(estimate.value, unit), estimate.interval
    return text if interval is None else f"{text} [{bare(interval.low, unit)}, {bare(interval.high, unit)}]"
