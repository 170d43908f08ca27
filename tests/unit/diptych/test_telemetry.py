from __future__ import annotations

import io
import json
from concurrent import futures

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from diptych.telemetry import extract, inject, make_logger, make_tracer

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(otlp_grpc.TraceServiceServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.requests: list[otlp.ExportTraceServiceRequest] = []

    def Export(self, request: otlp.ExportTraceServiceRequest, _context: object) -> otlp.ExportTraceServiceResponse:
        self.requests.append(request)
        return otlp.ExportTraceServiceResponse()


def test_traceparent_survives_the_round_trip() -> None:
    assert inject(extract(PARENT)) == PARENT


@pytest.mark.parametrize("junk", ["", "00-zz-1-1", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "x" * 10_000])
def test_junk_is_no_context(junk: str) -> None:
    assert inject(extract(junk)) == ""


def test_without_an_endpoint_nothing_is_recorded_but_the_trace_goes_on() -> None:
    tracer = make_tracer("router", "")
    span = tracer.start_span("router", context=extract(PARENT))
    assert not span.is_recording()
    assert inject(trace.set_span_in_context(span)) == PARENT
    with tracer.start_as_current_span("router", context=extract(PARENT)):
        assert inject() == PARENT
    tracer.shutdown()


def test_spans_reach_a_real_collector_as_children_of_the_client() -> None:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        tracer = make_tracer("router", f"http://127.0.0.1:{port}")
        with tracer.start_as_current_span("router", context=extract(PARENT), attributes={"n": 1}):
            child = inject()
        tracer.shutdown()
    finally:
        server.stop(None)
    (resource,) = collector.requests[0].resource_spans
    (span,) = resource.scope_spans[0].spans
    assert span.trace_id.hex() == PARENT.split("-")[1] == child.split("-")[1]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "router"


def test_one_line_per_event_key_value_or_json() -> None:
    plain, structured = io.StringIO(), io.StringIO()
    make_logger("router", stream=plain).info("worker_joined", worker="w 1")
    make_logger("router", json=True, stream=structured).info("worker_joined", worker="w 1")
    assert plain.getvalue().count("\n") == structured.getvalue().count("\n") == 1
    assert 'service=router event=worker_joined worker="w 1"' in plain.getvalue()
    line = json.loads(structured.getvalue())
    assert line["event"] == "worker_joined"
    assert line["level"] == "info"


def test_below_the_level_is_silent() -> None:
    stream = io.StringIO()
    make_logger("router", level="warning", stream=stream).info("chatty")
    assert stream.getvalue() == ""


def test_prompt_text_never_gets_out() -> None:
    stream = io.StringIO()
    logger = make_logger("router", stream=stream)
    logger.info("x", prompt="secret", messages=["secret"], token_ids=[4711])
    try:
        raise ValueError("secret")
    except ValueError:
        logger.exception("failed")
    assert "secret" not in stream.getvalue()
    assert "4711" not in stream.getvalue()
    assert "exception=ValueError" in stream.getvalue()
    assert "test_telemetry.py" in stream.getvalue()
