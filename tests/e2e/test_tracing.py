"""One request is one trace across the processes, under the client's own span, and neither traces, logs nor metrics hold
anything of a prompt or an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from otlp_collector import Collector, collecting
from process_cluster import ProcessCluster
from sse import read_events

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARKER = "xyzzy-plugh"  # in every prompt
CLIENT_SPAN = "00f067aa0ba902b7"
REMOTE, LOCAL, FAILED, REFUSED, STREAM = (f"{number:032x}" for number in range(0xA1, 0xA6))  # trace ids
KEYS = {  # every attribute there may be
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "diptych.prefill",
    "diptych.decode",
    "diptych.placement",
    "diptych.expected_ms",
    "diptych.retries",
    "diptych.prompt_tokens.computed",
    "diptych.prompt_tokens.local_cache",
    "diptych.queue_ms",
    "diptych.transfer_bytes",
    "diptych.exposed_ms",
    "diptych.choices",
    "error.type",
}


@dataclass(frozen=True)
class Recorded:
    """What is left to read when the cluster is gone."""

    collector: Collector
    answer: dict[str, Any]  # to the request of trace REMOTE
    logs: str
    metrics: str
    worker_ids: dict[str, str]  # by role


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recorded(model: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Recorded]:
    """A few requests, each with the trace id of what it shows. Processes send their last spans when they end."""
    async with collecting() as collector:
        traced = {"otlp_endpoint": collector.endpoint}
        cluster = ProcessCluster(
            model,
            valkey_url,
            tmp_path_factory.mktemp("logs"),
            worker=traced,
            router=traced | {"remote_prefill": "always"},
        )
        async with cluster:
            answer = await ask(cluster, REMOTE, max_tokens=8)
            never = await cluster.add_router(remote_prefill="never")
            await never.post(CHAT, json=body(max_tokens=8), headers=traceparent(LOCAL))
            hasty = await cluster.add_router(remote_prefill="never", request_deadline_ms=150)
            await hasty.post(CHAT, json=body(max_tokens=1500), headers=traceparent(FAILED))
            await refusals(cluster)
            await leave_a_stream(cluster)
            metrics = (await cluster.http.get("/metrics")).text
        roles = {worker.record.role.value: worker.record.worker_id for worker in cluster.workers}
        yield Recorded(collector, answer, cluster.text_of_logs(), metrics, roles)


CHAT = "/v1/chat/completions"


def body(**more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"say {MARKER} {'and again ' * 8}"}]
    return {"model": "tiny", "messages": messages, "temperature": 0, "ignore_eos": True, **more}


def traceparent(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-01"}


async def ask(cluster: ProcessCluster, trace_id: str, **more: Any) -> dict[str, Any]:
    answer = await cluster.http.post(CHAT, json=body(return_report=True, **more), headers=traceparent(trace_id))
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


async def refusals(cluster: ProcessCluster) -> None:
    """Requests that are wrong in the places where their text could get into a message."""
    role = [{"role": MARKER, "content": MARKER}]
    for wrong in ({"model": MARKER}, {"messages": role}, {"stop": [MARKER] * 5}, {MARKER: 1, "n": 99}):
        answer = await cluster.http.post(CHAT, json=body() | wrong, headers=traceparent(REFUSED))
        assert answer.status_code in (400, 404), answer.text
    answer = await cluster.http.post(CHAT, content=f'{{"messages": "{MARKER}'.encode(), headers=traceparent(REFUSED))
    assert answer.status_code == 400


async def leave_a_stream(cluster: ProcessCluster) -> None:
    request = body(stream=True, max_tokens=1500)
    async with cluster.http.stream("POST", CHAT, json=request, headers=traceparent(STREAM)) as response:
        async for _ in read_events(response):
            break
    await cluster.wait_quiet()


async def test_one_trace_across_the_processes(recorded: Recorded) -> None:
    spans = by_name(recorded.collector.spans(REMOTE))
    assert set(spans) == {"router", "prefill", "transfer", "decode"}
    assert spans["router"].parent_span_id.hex() == CLIENT_SPAN
    for name in ("prefill", "transfer", "decode"):
        assert spans[name].parent_span_id == spans["router"].span_id, name


async def test_spans_follow_each_other(recorded: Recorded) -> None:
    spans = by_name(recorded.collector.spans(REMOTE))
    router, prefill, transfer, decode = (spans[name] for name in ("router", "prefill", "transfer", "decode"))
    for span in spans.values():
        assert span.end_time_unix_nano >= span.start_time_unix_nano, span.name
    slack = 5_000_000  # ns; the spans' clocks are wall clocks, read in different processes
    for inner in (prefill, transfer, decode):
        assert inner.start_time_unix_nano >= router.start_time_unix_nano - slack, inner.name
    assert prefill.end_time_unix_nano <= decode.start_time_unix_nano + slack
    assert transfer.end_time_unix_nano <= decode.start_time_unix_nano + slack
    assert decode.start_time_unix_nano < decode.end_time_unix_nano


async def test_attributes_tell_what_happened(recorded: Recorded) -> None:
    spans = {name: attributes(span) for name, span in by_name(recorded.collector.spans(REMOTE)).items()}
    usage, report = recorded.answer["usage"], recorded.answer["diptych"]
    router = spans["router"]
    assert router["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert router["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 8
    assert router["gen_ai.usage.cache_read.input_tokens"] == 0
    assert router["diptych.prefill"] == recorded.worker_ids["prefill"]
    assert router["diptych.decode"] == recorded.worker_ids["decode"]
    assert router["diptych.placement"] == "remote"
    assert spans["prefill"]["diptych.prompt_tokens.computed"] == usage["prompt_tokens"]
    assert spans["transfer"]["diptych.transfer_bytes"] == report["transfer_bytes"] > 0


async def test_without_prefill_worker_there_is_no_transfer(recorded: Recorded) -> None:
    assert set(by_name(recorded.collector.spans(LOCAL))) == {"router", "prefill", "decode"}


async def test_a_failure_is_marked(recorded: Recorded) -> None:
    router = by_name(recorded.collector.spans(FAILED))["router"]
    assert router.status.code == Status.STATUS_CODE_ERROR
    assert attributes(router)["error.type"] == "deadline_exceeded"
    left = by_name(recorded.collector.spans(STREAM))["router"]
    assert attributes(left)["error.type"] in ("cancelled", "GeneratorExit", "CancelledError")


async def test_nothing_of_prompts_or_answers_is_told(recorded: Recorded) -> None:
    answer = recorded.answer["choices"][0]["message"]["content"]
    assert len(answer) >= 6
    spans = recorded.collector.all_spans()
    assert {key for span in spans for key in attributes(span)} <= KEYS
    assert not [span.name for span in spans if span.events]
    told = "".join(map(str, recorded.collector.received))
    for text in (told, recorded.logs, recorded.metrics):
        assert text
        for secret in (MARKER, "and again", answer):
            assert secret not in text


def by_name(spans: list[Span]) -> dict[str, Span]:
    assert len({span.name for span in spans}) == len(spans), [span.name for span in spans]
    return {span.name: span for span in spans}


def attributes(span: Span) -> dict[str, Any]:
    """Scalars only: a list could hold token ids."""
    values = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        assert kind in ("string_value", "int_value", "double_value", "bool_value"), attribute
        values[attribute.key] = getattr(attribute.value, kind)
    return values
