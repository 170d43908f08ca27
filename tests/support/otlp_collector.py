"""An OpenTelemetry collector that keeps what it is sent: a real OTLP server over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]  # generated without types
    endpoint: str = ""
    received: list[pb.ExportTraceServiceRequest] = field(default_factory=list)

    async def Export(self, request: pb.ExportTraceServiceRequest, _context: Any) -> pb.ExportTraceServiceResponse:
        self.received.append(request)
        return pb.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> list[Span]:
        """Of one trace (32 hex digits), in the order in which they began."""
        return sorted(
            (span for span in self.all_spans() if span.trace_id.hex() == trace_id),
            key=lambda span: span.start_time_unix_nano,
        )

    def all_spans(self) -> list[Span]:
        return [
            span
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port of this machine; `endpoint` is its address."""
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
