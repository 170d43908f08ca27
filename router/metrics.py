"""What the router tells Prometheus: each finished request once, and each worker's own view of itself when scraped.

Where the meaning is vLLM's the name is vLLM's too, so that its dashboards and gateway pickers work unchanged. Every
label set is closed. A canary is not a request.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram

from diptych.errors import ALL_ERRORS
from router.requests import Report

OK = "ok"
OUTCOMES = (OK, *(error.code for error in ALL_ERRORS))

# vLLM's buckets (vllm/v1/metrics/loggers.py), so that its dashboards' quantiles mean the same
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_PHASE_S = (0.001, 0.005, 0.02, 0.1, *_REQUEST_S)  # queue and transfer are mostly shorter than a request


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One prompt's run, when it is over. Times are monotonic seconds."""

    outcome: str  # one of `OUTCOMES`
    canary: bool
    finish_reasons: list[str]
    num_choices: int
    prompt_tokens: int
    completion_tokens: int
    arrived_at: float
    first_token_at: float | None
    last_token_at: float
    ended_at: float
    inter_token_s: list[float]
    report: Report


class RequestMetrics:
    """Counts finished requests of one model. Not thread-safe beyond what prometheus_client gives."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._model = model

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ("model_name", *labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made: Histogram = Histogram(name, text, ("model_name",), registry=registry, buckets=buckets).labels(model)
            return made

        outcomes = counter("diptych_requests", "Requests that ended, by outcome.", "code")
        self._outcomes = {code: outcomes.labels(model, code) for code in OUTCOMES}
        self._retries = counter("diptych_retries", "Attempts after a request had failed on a worker.").labels(model)
        self._success = counter("vllm:request_success", "Choices that were completed.", "finished_reason")
        paths = counter("diptych_requests_placed", "Requests by where their prompt was computed.", "path")
        self._paths = {path: paths.labels(model, path) for path in ("remote", "local")}
        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of finished requests.").labels(model)
        self._generation_tokens = counter("vllm:generation_tokens", "Tokens drawn.").labels(model)
        self._cache_queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up.").labels(model)
        self._cache_hits = counter("vllm:prefix_cache_hits", "Prompt tokens nobody had to compute.").labels(model)
        self._predicted_hits = counter(
            "diptych_predicted_cached_tokens", "Prompt tokens the index believed to be cached."
        ).labels(model)
        self._matched = counter(
            "diptych_matched_tokens", "Prompt tokens of the longest prefix that any worker was believed to hold."
        ).labels(model)
        self._stale_hits = counter(
            "diptych_stale_hits", "Requests that found less cached than the index believed."
        ).labels(model)
        self._stale_tokens = counter(
            "diptych_stale_hit_tokens", "Prompt tokens believed to be cached that were not."
        ).labels(model)
        self._unforeseen_tokens = counter(
            "diptych_unforeseen_hit_tokens", "Prompt tokens that were cached and not believed to be."
        ).labels(model)
        self._avoided = counter(
            "diptych_prefill_tokens_avoided", "Prompt tokens that no worker computed, whatever path they took."
        ).labels(model)
        self._ttft_error = histogram(
            "diptych_predicted_ttft_error_seconds", "|predicted - actual| time from placement to first token.", _PHASE_S
        )
        self._ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT_S)
        self._itl = histogram("vllm:inter_token_latency_seconds", "Between two updates of a choice.", _TOKEN_S)
        self._tpot = histogram(
            "vllm:request_time_per_output_token_seconds", "(e2e - TTFT) / (tokens - 1) of a choice.", _TOKEN_S
        )
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_S)
        self._queue = histogram("vllm:request_queue_time_seconds", "Waiting at the workers.", _PHASE_S)
        self._prefill = histogram("vllm:request_prefill_time_seconds", "Computing the prompt.", _PHASE_S)
        self._decode = histogram("vllm:request_decode_time_seconds", "First token to last.", _PHASE_S)
        self._exposed = histogram(
            "diptych_request_exposed_transfer_seconds", "Prefill's last token to KV verified at decode.", _PHASE_S
        )

    def refused(self, code: str) -> None:
        """A request that was refused before it had a prompt to run."""
        self._outcomes[code].inc()

    def observe(self, record: RequestRecord) -> None:
        """Count one finished run. Latencies are of completed requests only."""
        if record.canary:
            return
        self._outcomes[record.outcome].inc()
        self._retries.inc(record.report.num_retries)
        self._generation_tokens.inc(record.completion_tokens)
        if record.outcome != OK:
            return
        for reason in record.finish_reasons:
            self._success.labels(self._model, reason).inc()
        self._observe_prompt(record)
        self._observe_times(record)

    def _observe_prompt(self, record: RequestRecord) -> None:
        report = record.report
        self._prompt_tokens.inc(record.prompt_tokens)
        self._cache_queries.inc(record.prompt_tokens)
        self._cache_hits.inc(report.cached_tokens)
        self._predicted_hits.inc(report.predicted_cached)
        self._matched.inc(report.matched_tokens)
        self._observe_hit(record.prompt_tokens, report)
        self._paths["remote" if report.prefill_id else "local"].inc()

    def _observe_hit(self, num_prompt_tokens: int, report: Report) -> None:
        """What was believed against what was true."""
        if report.prefill is None:
            return
        missing = report.predicted_cached - report.cached_tokens
        self._stale_hits.inc(missing > 0)
        self._stale_tokens.inc(max(0, missing))
        self._unforeseen_tokens.inc(max(0, -missing))
        computed = report.prefill.prompt_computed + (report.decode.prompt_computed if report.decode else 0)
        self._avoided.inc(max(0, num_prompt_tokens - computed))

    def _observe_times(self, record: RequestRecord) -> None:
        report = record.report
        legs = [leg for leg in (report.prefill, report.decode) if leg is not None]
        self._queue.observe(sum(leg.queue_ms for leg in legs) / 1e3)
        if report.prefill is not None:
            self._prefill.observe(report.prefill.compute_ms / 1e3)
        if report.decode is not None:
            self._exposed.observe(report.decode.exposed_ms / 1e3)
        self._e2e.observe(record.last_token_at - record.arrived_at)
        for gap in record.inter_token_s:
            self._itl.observe(gap)
        if record.first_token_at is None:
            return
        if report.ttft_ms is not None:
            self._ttft_error.observe(abs(report.ttft_ms - report.expected_ms) / 1e3)
        decode_s = record.last_token_at - record.first_token_at
        self._ttft.observe(record.first_token_at - record.arrived_at)
        self._decode.observe(decode_s)
        tokens = record.completion_tokens / record.num_choices
        if tokens > 1:
            self._tpot.observe(decode_s / (tokens - 1))
