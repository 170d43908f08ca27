"""Each worker's own view of itself as Prometheus series, read from membership and frames at scrape time.

Keeps no state: a worker that is gone is gone from the next scrape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from diptych.messages import WorkerRecord, WorkerStats

Workers = Callable[[], Iterable[tuple[WorkerRecord, WorkerStats]]]

_LABELS = ("worker", "role", "model_name")

_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("vllm:num_requests_running", "num_running", "Sequences in the worker's batch."),
    ("vllm:num_requests_waiting", "num_waiting", "Requests waiting at the worker."),
    ("diptych_requests_loading", "num_loading", "Requests that have blocks and wait for their KV."),
    ("diptych_requests_held", "num_held", "Computed prompts that wait for their KV to be pushed."),
    ("diptych_step_tokens", "step_tokens", "Tokens of the latest step."),
    ("diptych_step_budget_tokens", "step_budget", "Tokens one step may compute."),
    ("diptych_waiting_prefill_tokens", "waiting_prefill_tokens", "Prompt tokens still to be computed."),
    ("diptych_prefill_tokens_per_second", "prefill_tokens_per_s", "Measured; 0 until the first prefill."),
    ("diptych_decode_step_milliseconds", "decode_step_ms", "Measured at the present batch size."),
    ("diptych_transfer_bytes_per_second", "transfer_bytes_per_s", "Measured by the pusher."),
)
_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("diptych_worker_generated_tokens", "generated_tokens_total", "Tokens drawn by the worker."),
    ("diptych_prompt_tokens_queried", "prompt_tokens_queried_total", "Prompt tokens looked up in the worker's cache."),
    ("vllm:spec_decode_num_draft_tokens", "drafted_tokens_total", "Tokens guessed and computed in advance."),
    ("vllm:spec_decode_num_accepted_tokens", "accepted_tokens_total", "Guesses that were right."),
    ("diptych_requests_expired", "expired_total", "Requests the engine ended at their deadline."),
    ("diptych_transfers", "transfers_total", "KV transfers completed."),
    ("diptych_transfers_failed", "transfers_failed_total", "KV transfers that failed."),
    ("diptych_transfers_refused", "transfers_refused_total", "KV deliveries refused after a check."),
    ("diptych_transfer_bytes", "transfer_bytes_total", "KV bytes moved."),
    ("diptych_transfer_seconds", "transfer_seconds_total", "First write posted to delivery verified."),
    ("diptych_exposed_transfer_seconds", "exposed_transfer_seconds_total", "Prefill's last token to verified."),
    ("vllm:num_preemptions", "preemptions_total", "Sequences preempted for want of blocks."),
    ("diptych_evictions", "evictions_total", "Cached blocks evicted."),
    ("diptych_steps", "steps_total", "Engine steps."),
    (
        "diptych_publisher_epochs",
        "index_epochs_total",
        "Logs of cache events the worker has begun; 1 is none too many.",
    ),
    ("diptych_publisher_overflows", "index_overflows_total", "Of them, because too many events waited for Redis."),
)
_BLOCK_STATES = ("free", "cached", "used", "reserved", "in_flight", "quarantined")
_PROMPT_SOURCES = {"computed": "computed", "local_cache": "cached", "transferred": "transferred"}


class WorkerCollector(Collector):
    """Asks for the workers once per scrape."""

    def __init__(self, workers: Workers, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            clock: unix seconds, as workers say when they started.
        """
        self._workers = workers
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        workers = list(self._workers())
        for name, attribute, text in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for record, stats in workers:
                gauge.add_metric(_labels(record), getattr(stats, attribute))
            yield gauge
        for name, attribute, text in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for record, stats in workers:
                counter.add_metric(_labels(record), getattr(stats, attribute))
            yield counter
        yield _publisher_degraded(workers)
        yield _requests_by_kind(workers)
        yield _cache_usage(workers)
        yield _cache_config(workers)
        yield _blocks(workers)
        yield _retention(workers, self._clock())
        yield _prompt_tokens(workers)


def _labels(record: WorkerRecord) -> tuple[str, str, str]:
    return (record.worker_id, record.role.value, record.model)


def unpublished(workers: Iterable[tuple[WorkerRecord, WorkerStats]]) -> str:
    """Which workers cannot tell the index what they hold, and why; "": all can."""
    return "; ".join(
        f"{record.worker_id} publishes nothing: {stats.index_degraded}"
        for record, stats in workers
        if stats.index_degraded
    )


def _publisher_degraded(workers: list[tuple[WorkerRecord, WorkerStats]]) -> Metric:
    text = "1 while Redis does not take the worker's cache events; /health says why."
    family = GaugeMetricFamily("diptych_publisher_degraded", text, labels=_LABELS)
    for record, stats in workers:
        family.add_metric(_labels(record), bool(stats.index_degraded))
    return family


def _requests_by_kind(workers: list[tuple[WorkerRecord, WorkerStats]]) -> Metric:
    labels = (*_LABELS, "state", "kind")
    family = GaugeMetricFamily("diptych_requests_by_kind", "Sequences running or waiting, by task.", labels=labels)
    for record, stats in workers:
        for state, by_kind in (("running", stats.running_by_kind), ("waiting", stats.waiting_by_kind)):
            for kind, count in by_kind.items():
                family.add_metric((*_labels(record), state, kind), count)
    return family


def _cache_usage(workers: list[tuple[WorkerRecord, WorkerStats]]) -> Metric:
    """vLLM's meaning: the share of blocks that could not be had now. Free and merely cached ones could."""
    family = GaugeMetricFamily("vllm:kv_cache_usage_perc", "KV blocks not available; 1 is all of them.", labels=_LABELS)
    for record, stats in workers:
        unavailable = stats.blocks_total - stats.blocks_free - stats.blocks_cached
        family.add_metric(_labels(record), unavailable / stats.blocks_total if stats.blocks_total else 0.0)
    return family


def _cache_config(workers: list[tuple[WorkerRecord, WorkerStats]]) -> Metric:
    labels = (*_LABELS, "block_size", "num_gpu_blocks")
    family = GaugeMetricFamily("vllm:cache_config_info", "Block size (tokens) and number of blocks.", labels=labels)
    for record, _ in workers:
        family.add_metric((*_labels(record), str(record.block_size), str(record.num_blocks)), 1)
    return family


def _blocks(workers: list[tuple[WorkerRecord, WorkerStats]]) -> Metric:
    family = GaugeMetricFamily("diptych_blocks", "KV blocks by state.", labels=(*_LABELS, "state"))
    for record, stats in workers:
        for state in _BLOCK_STATES:
            family.add_metric((*_labels(record), state), getattr(stats, f"blocks_{state}"))
    return family


def _retention(workers: list[tuple[WorkerRecord, WorkerStats]], now: float) -> Metric:
    """By Little's law: what is there, divided by how much of it goes in a second; +Inf where nothing has gone."""
    text = "Mean life of a cached block, over the worker's life; with a window, see the documentation."
    family = GaugeMetricFamily("diptych_block_retention_seconds", text, labels=_LABELS)
    for record, stats in workers:
        age_s = max(0.0, now - record.started_at)
        evicted = stats.evictions_total
        family.add_metric(_labels(record), stats.blocks_cached * age_s / evicted if evicted else float("inf"))
    return family


def _prompt_tokens(workers: list[tuple[WorkerRecord, WorkerStats]]) -> Metric:
    labels = (*_LABELS, "source")
    family = CounterMetricFamily("diptych_prompt_tokens", "Prompt tokens by where their KV came from.", labels=labels)
    for record, stats in workers:
        for source, name in _PROMPT_SOURCES.items():
            family.add_metric((*_labels(record), source), getattr(stats, f"prompt_tokens_{name}_total"))
    return family
