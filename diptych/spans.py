"""Spans of one request across processes: the router's, and one for each leg, all on one trace.

Legs are recorded when they end, from the times they noted, because their work is spread over threads and callbacks.
Attributes follow OpenTelemetry's GenAI conventions where those have a name for the thing.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from diptych.errors import DiptychError
from diptych.telemetry import extract, inject

Attributes = Mapping[str, str | int | float | bool]


def start_span(tracer: Tracer, name: str, traceparent: str) -> Span:
    """A span under the client's (or the router's) trace; the caller ends it with `end_span`."""
    return tracer.start_span(name, context=extract(traceparent))


def traceparent_of(span: Span) -> str:
    """What goes into a `Submission` so that the workers' spans become children of this one."""
    return inject(trace.set_span_in_context(span))


def end_span(span: Span, attributes: Attributes, error: BaseException | None) -> None:
    span.set_attributes(attributes)
    if error is not None:
        name = error.code if isinstance(error, DiptychError) else type(error).__name__
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def record_span(
    tracer: Tracer, name: str, traceparent: str, start_s: float, end_s: float, attributes: Attributes
) -> None:
    """A span that is over: `start_s` and `end_s` are unix seconds."""
    span = tracer.start_span(name, context=extract(traceparent), start_time=int(start_s * 1e9), attributes=attributes)
    span.end(end_time=int(end_s * 1e9))
