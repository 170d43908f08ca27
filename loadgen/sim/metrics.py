"""What a run comes to, in numbers.

Latencies are those of requests that finished; a request that was refused counts as a miss of every limit. Reuse is the
share of all prompt tokens found cached where the prompt was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from diptych.messages import Role
from loadgen.report.phases import jain
from loadgen.sim.cluster import Cluster
from loadgen.sim.requests import Record


class Latency(msgspec.Struct, frozen=True):
    """Of one kind, in ms; nan where there is nothing."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a good request is: both at once."""

    ttft_ms: float = 5_000.0
    tpot_ms: float = 50.0

    def met_by(self, record: Record) -> bool:
        return record.finished and record.ttft_ms <= self.ttft_ms and record.tpot_ms <= self.tpot_ms


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Field names are part of the JSON that `replay --json` prints."""

    num_requests: int
    num_failed: int
    duration_s: float  # virtual, first arrival to last token
    ttft_ms: Latency
    tpot_ms: Latency  # per request: mean time between its tokens
    itl_ms: Latency  # every gap between two tokens of a request
    e2e_ms: Latency
    reuse: float  # share of prompt tokens found cached
    predicted_reuse: float  # the same, as placement believed
    prediction_error: float  # mean |predicted - found| a request, as a share of its prompt
    attainment: float  # share of requests within the limits
    goodput_rps: float  # requests within the limits, a second
    throughput_tokens_per_s: float  # output
    balance_prompt: float  # Jain's index of the prompt tokens computed, over the workers that compute prompts; 1: even
    balance_busy: float  # Jain's index of busy time, over all workers of the role that decodes
    utilisation_prefill: float  # busy share of the workers that compute prompts
    utilisation_decode: float
    transfer_bytes: int
    transfer_exposed_ms: float  # mean, prompt computed to KV delivered; 0 without transfers
    placement_us_p50: float  # wall time, of look-up and policy
    placement_us_p99: float
    trace_hash: str  # equal runs have equal ones


def summarise(cluster: Cluster, limits: Limits | None = None) -> Summary:
    """The numbers of a run that is over."""
    limits = limits or Limits()
    records = cluster.records
    done = [each for each in records if each.finished]
    begin_ns = min((each.request.arrival_ns for each in records), default=0)
    duration_s = max((max((each.last_token_ns for each in done), default=0) - begin_ns) / 1e9, 1e-9)
    prompt_tokens = max(1, sum(each.request.input_length for each in done))
    good = sum(limits.met_by(each) for each in records)
    decoders = [each for each in cluster.workers if each.role is Role.DECODE]
    prefillers = [each for each in cluster.workers if each.role is Role.PREFILL] or decoders
    exposed = [each.transfer_ns / 1e6 for each in done if each.transfer_ns]
    placed = cluster.front.placement_us or [0.0]
    return Summary(
        num_requests=len(records),
        num_failed=len(records) - len(done),
        duration_s=duration_s,
        ttft_ms=latency([each.ttft_ms for each in done]),
        tpot_ms=latency([each.tpot_ms for each in done if each.request.output_length > 1]),
        itl_ms=weighted_latency(*cluster.gaps.sorted_ms()),
        e2e_ms=latency([each.e2e_ms for each in done]),
        reuse=sum(each.cached for each in done) / prompt_tokens,
        predicted_reuse=sum(each.predicted_cached for each in done) / prompt_tokens,
        prediction_error=_mean([abs(each.predicted_cached - each.cached) / each.request.input_length for each in done]),
        attainment=good / max(1, len(records)),
        goodput_rps=good / duration_s,
        throughput_tokens_per_s=sum(each.request.output_length for each in done) / duration_s,
        balance_prompt=jain([each.computed_tokens for each in prefillers]),
        balance_busy=jain([each.busy_ns for each in decoders]),
        utilisation_prefill=_mean([each.busy_ns / 1e9 / duration_s for each in prefillers]),
        utilisation_decode=_mean([each.busy_ns / 1e9 / duration_s for each in decoders]),
        transfer_bytes=cluster.wires.num_bytes,
        transfer_exposed_ms=_mean(exposed),
        placement_us_p50=float(np.percentile(placed, 50)),
        placement_us_p99=float(np.percentile(placed, 99)),
        trace_hash=cluster.loop.digest,
    )


def latency(values_ms: Sequence[float]) -> Latency:
    if not values_ms:
        return Latency(*[float("nan")] * 4)
    p50, p90, p99 = np.percentile(values_ms, [50, 90, 99]).tolist()
    return Latency(float(np.mean(values_ms)), p50, p90, p99)


def weighted_latency(values_ms: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> Latency:
    """Of values in rising order, [n], each there so many times, [n]; percentiles are the nearest value above."""
    if not len(values_ms):
        return Latency(*[float("nan")] * 4)
    reached = np.cumsum(counts)
    p50, p90, p99 = (float(values_ms[np.searchsorted(reached, share * reached[-1])]) for share in (0.5, 0.9, 0.99))
    return Latency(float(np.average(values_ms, weights=counts)), p50, p90, p99)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
