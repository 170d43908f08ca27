from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from diptych.errors import ALL_ERRORS
from diptych.messages import LegStats, Role, WorkerRecord, WorkerState, WorkerStats
from router.metrics import OK, OUTCOMES, RequestMetrics, RequestRecord
from router.requests import Report
from router.worker_metrics import WorkerCollector, unpublished

REPORT = Report(
    prefill_id="p",
    decode_id="d",
    predicted_cached=32,
    prefill=LegStats(prompt_computed=68, prompt_cached=32, queue_ms=10.0, compute_ms=200.0),
    decode=LegStats(prompt_transferred=100, queue_ms=5.0, exposed_ms=4.0),
)
RECORD = RequestRecord(
    outcome=OK,
    canary=False,
    finish_reasons=["stop", "length"],
    num_choices=2,
    prompt_tokens=100,
    completion_tokens=22,
    arrived_at=10.0,
    first_token_at=10.5,
    last_token_at=12.5,
    ended_at=12.6,
    inter_token_s=[0.2, 0.3],
    report=REPORT,
)


class Counted:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = RequestMetrics(self.registry, "tiny")

    def __call__(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, {"model_name": "tiny", **labels})
        assert value is not None, name
        return value


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_a_finished_request_is_seen_once_everywhere(counted: Counted) -> None:
    counted.metrics.observe(RECORD)
    assert counted("diptych_requests_total", code=OK) == 1
    assert counted("vllm:request_success_total", finished_reason="stop") == 1
    assert counted("diptych_requests_placed_total", path="remote") == 1
    assert counted("vllm:prompt_tokens_total") == 100
    assert counted("vllm:generation_tokens_total") == 22
    assert counted("vllm:prefix_cache_queries_total") == 100
    assert counted("vllm:prefix_cache_hits_total") == 32
    assert counted("diptych_predicted_cached_tokens_total") == 32
    sums = {
        "vllm:time_to_first_token_seconds": 0.5,
        "vllm:inter_token_latency_seconds": 0.5,
        "vllm:request_time_per_output_token_seconds": 0.2,  # 2.0 s over (11 - 1) tokens of a choice
        "vllm:e2e_request_latency_seconds": 2.5,
        "vllm:request_queue_time_seconds": 0.015,
        "vllm:request_prefill_time_seconds": 0.2,
        "vllm:request_decode_time_seconds": 2.0,
        "diptych_request_exposed_transfer_seconds": 0.004,
    }
    assert {name: counted(f"{name}_sum") for name in sums} == pytest.approx(sums)
    assert counted("vllm:inter_token_latency_seconds_count") == 2


@pytest.mark.parametrize(
    ("predicted", "stale", "stale_tokens", "unforeseen"), [(48, 1, 16, 0), (32, 0, 0, 0), (0, 0, 0, 32)]
)
def test_what_was_believed_is_held_against_what_was_true(
    counted: Counted, predicted: int, stale: int, stale_tokens: int, unforeseen: int
) -> None:
    counted.metrics.observe(replace(RECORD, report=replace(REPORT, predicted_cached=predicted, matched_tokens=64)))
    assert counted("diptych_matched_tokens_total") == 64
    assert counted("diptych_stale_hits_total") == stale
    assert counted("diptych_stale_hit_tokens_total") == stale_tokens
    assert counted("diptych_unforeseen_hit_tokens_total") == unforeseen
    assert counted("diptych_prefill_tokens_avoided_total") == 32


def test_prefill_is_not_avoided_where_decode_had_to_compute_it_again(counted: Counted) -> None:
    again = replace(REPORT, decode=LegStats(prompt_computed=100))
    counted.metrics.observe(replace(RECORD, report=again))
    assert counted("diptych_prefill_tokens_avoided_total") == 0


def test_the_error_of_a_prediction_is_from_placement_to_first_token(counted: Counted) -> None:
    marks = {"placed": 10.1, "first_token": 10.5}
    counted.metrics.observe(replace(RECORD, report=replace(REPORT, expected_ms=300.0, marks=marks)))
    assert counted("diptych_predicted_ttft_error_seconds_sum") == pytest.approx(0.1)


def test_a_canary_is_not_a_request(counted: Counted) -> None:
    counted.metrics.observe(replace(RECORD, canary=True))
    assert counted("diptych_requests_total", code=OK) == 0
    assert counted("vllm:generation_tokens_total") == 0


def test_failures_are_counted_by_code_and_have_no_latency(counted: Counted) -> None:
    counted.metrics.observe(replace(RECORD, outcome="leg_failed", report=Report(), first_token_at=None))
    counted.metrics.refused("invalid_value")
    assert counted("diptych_requests_total", code="leg_failed") == 1
    assert counted("diptych_requests_total", code="invalid_value") == 1
    assert counted("vllm:e2e_request_latency_seconds_count") == 0


def test_the_outcomes_are_exactly_the_tree(counted: Counted) -> None:
    assert set(OUTCOMES) == {OK} | {error.code for error in ALL_ERRORS}
    assert all(counted("diptych_requests_total", code=code) == 0 for code in OUTCOMES)


def _worker(name: str, role: Role) -> WorkerRecord:
    return WorkerRecord(
        worker_id=name,
        role=role,
        address="127.0.0.1:1",
        state=WorkerState.READY,
        model="tiny",
        fingerprint="f",
        block_size=16,
        num_blocks=64,
        block_bytes=1,
        max_context=256,
        started_at=0.0,
    )


def test_workers_are_scraped_as_they_are_now() -> None:
    stats: dict[str, Any] = {
        "num_running": 3,
        "blocks_total": 64,
        "blocks_free": 20,
        "blocks_cached": 28,
        "blocks_used": 16,
        "prompt_tokens_transferred_total": 100,
        "transfer_seconds_total": 1.5,
        "running_by_kind": {"local": 1, "prefill": 0, "receive": 2},
        "step_tokens": 48,
        "accepted_tokens_total": 7,
        "evictions_total": 56,
    }
    workers = [
        (_worker("d", Role.DECODE), WorkerStats(**stats)),
        (_worker("p", Role.PREFILL), WorkerStats(index_degraded="Redis: full")),
    ]
    assert unpublished(workers) == "p publishes nothing: Redis: full"
    registry = CollectorRegistry()
    registry.register(WorkerCollector(lambda: workers, clock=lambda: 600.0))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"worker": "d", "role": "decode", "model_name": "tiny", **labels})

    assert value("vllm:num_requests_running") == 3
    assert value("vllm:kv_cache_usage_perc") == 0.25
    assert value("vllm:cache_config_info", block_size="16", num_gpu_blocks="64") == 1
    assert value("diptych_blocks", state="cached") == 28
    assert value("diptych_prompt_tokens_total", source="transferred") == 100
    assert value("diptych_transfer_seconds_total") == 1.5
    assert value("diptych_requests_by_kind", state="running", kind="receive") == 2
    assert value("diptych_publisher_degraded") == 0
    assert value("diptych_step_tokens") == 48
    assert value("diptych_block_retention_seconds") == 28 * 600 / 56
    assert value("vllm:spec_decode_num_accepted_tokens_total") == 7
    assert (
        registry.get_sample_value("vllm:kv_cache_usage_perc", {"worker": "p", "role": "prefill", "model_name": "tiny"})
        == 0.0
    )
    workers.clear()
    assert value("vllm:num_requests_running") is None
    assert b"vllm:num_requests_running" in generate_latest(registry)
