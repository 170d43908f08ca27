"""Traces and logs, set up once per process and passed on by hand: no global provider, no global logger.

A trace crosses processes as a W3C `traceparent` string inside our own messages. Neither a span nor a log line ever
holds text or token ids of a prompt or an answer; the logger drops fields that could.

Knows nothing about requests, metrics or what is measured.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

EXPORT_TIMEOUT_S = 5.0  # a collector that is gone must not hold up a shutdown for long
SECRET_FIELDS = frozenset({"prompt", "messages", "content", "text", "token_ids", "body", "cache_salt"})

Logger = structlog.typing.FilteringBoundLogger

_propagator = TraceContextTextMapPropagator()


class Tracer(trace.Tracer):
    """An OpenTelemetry tracer that owns its exporter."""

    def __init__(self, tracer: trace.Tracer, shutdown: Callable[[], None]) -> None:
        self._tracer = tracer
        self._shutdown = shutdown

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._tracer.start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        span: AbstractContextManager[trace.Span] = self._tracer.start_as_current_span(*args, **kwargs)
        return span

    def shutdown(self) -> None:
        """Send what is buffered, then stop. Blocks for up to `EXPORT_TIMEOUT_S`."""
        self._shutdown()


def make_tracer(service: str, otlp_endpoint: str) -> Tracer:
    """A tracer for one process. With an empty endpoint (`http://host:4317`) it records nothing but still passes
    an extracted client context on."""
    if not otlp_endpoint:
        return Tracer(trace.NoOpTracer(), lambda: None)
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=True, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracer(provider.get_tracer("diptych"), provider.shutdown)


def inject(context: Context | None = None) -> str:
    """The `traceparent` of a context (the current one by default); empty without a span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier.get("traceparent", "")


def extract(traceparent: str) -> Context:
    """The context to start a child span in. Anything but a valid `traceparent` gives an empty context."""
    return _propagator.extract({"traceparent": traceparent}, Context())


def make_logger(service: str, *, json: bool = False, level: str = "info", stream: TextIO | None = None) -> Logger:
    """A logger that writes one line per event to stderr: `key=value`, or JSON."""
    renderer: Any = structlog.processors.JSONRenderer() if json else _key_value_renderer()
    logger: Logger = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_secrets,
            _exception_without_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        service=service,
    )
    return logger


def _key_value_renderer() -> Any:
    order = ["timestamp", "level", "service", "event"]
    return structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True)


def _without_secrets(_logger: Any, _method: str, event: Any) -> Any:
    for name in SECRET_FIELDS & event.keys():
        event[name] = "(dropped)"
    return event


def _exception_without_values(_logger: Any, _method: str, event: Any) -> Any:
    """The type and the places of an exception. Its message may quote what a client sent, so it is left out."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = type(error).__name__
        event["at"] = " < ".join(
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}:{frame.name}"
            for frame in reversed(traceback.extract_tb(error.__traceback__))
        )
    return event
