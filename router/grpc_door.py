"""The gRPC door: `diptych.v1.Inference`, health and reflection. The same parsing, limits and errors as HTTP.

Protobuf types stay in this file and `grpc_convert`. Converts and delegates; decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NoReturn
from uuid import uuid4

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from diptych.errors import BadRequest, DiptychError, InternalError
from diptych.v1 import inference_pb2 as pb
from diptych.v1 import inference_pb2_grpc
from router.abortable import AbortableEvents
from router.choices import Generation
from router.frontend import Frontend, HealthView
from router.grpc_convert import model_info, parse_generate, response, usage
from router.grpc_health import HealthDoor
from router.text_request import Origin

SERVICE: str = pb.DESCRIPTOR.services_by_name["Inference"].full_name

Context = Any  # grpc.aio.ServicerContext, which has no types


async def serve_grpc(frontend: Frontend, health: Callable[[], HealthView]) -> tuple[grpc.aio.Server, int]:
    """Start the door on `config.host:config.grpc_port`; the port is the bound one.

    Raises:
        OSError: the port is taken.
    """
    config = frontend.config
    server = grpc.aio.server(
        options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", config.max_body_bytes))
    )
    inference_pb2_grpc.add_InferenceServicer_to_server(InferenceDoor(frontend), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthDoor(health, services=("", SERVICE)), server)
    health_service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((SERVICE, health_service, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(f"{config.host}:{config.grpc_port}")
    except RuntimeError:
        raise OSError(f"cannot listen on {config.host}:{config.grpc_port}; choose another grpc_port or 0") from None
    await server.start()
    return server, port


class InferenceDoor(inference_pb2_grpc.InferenceServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        self._running: dict[str, AbortableEvents] = {}  # by the client's request id

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        request_id = request.request_id or uuid4().hex
        try:
            async for message in self._generate(request, request_id, context):
                yield message
        except DiptychError as error:
            await _abort(context, error)
        except Exception as error:
            self._frontend.logger.error("request_failed", request=request_id, exc_info=error)
            await _abort(context, InternalError("the router failed on this request; its log has the place"))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        if (events := self._running.get(request.request_id)) is not None:
            await events.abort()
        return pb.AbortResponse()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        return model_info(self._frontend.model)

    async def _generate(
        self, request: pb.GenerateRequest, request_id: str, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        if request_id in self._running:
            self._frontend.metrics.refused(BadRequest.code)
            raise BadRequest("request_id is in use by a running request", param="request_id")
        generation = await self._start(request, context)
        events = self._running[request_id] = AbortableEvents(generation.events())
        try:
            async with aclosing(events):
                while (event := await events.next()) is not None:
                    yield response(request_id, event, usage(generation.usage) if generation.ended else None)
        finally:
            del self._running[request_id]

    async def _start(self, request: pb.GenerateRequest, context: Context) -> Generation:
        frontend = self._frontend
        metadata = dict(context.invocation_metadata() or ())
        origin = Origin(f"grpc-{uuid4().hex}", frontend.clock(), str(metadata.get("traceparent", "")))
        try:
            return Generation(frontend, await parse_generate(request, frontend, origin))
        except DiptychError as error:
            frontend.metrics.refused(error.code)
            raise


async def _abort(context: Context, error: DiptychError) -> NoReturn:
    """Status and message; `diptych-code`, `diptych-param` and `retry-after-ms` as trailing metadata."""
    details = [("diptych-code", error.code)]
    if error.param is not None:
        details.append(("diptych-param", error.param))
    if error.retry_after_s is not None:
        details.append(("retry-after-ms", str(int(error.retry_after_s * 1e3))))
    await context.abort(grpc.StatusCode[error.grpc_status], error.message, tuple(details))
    raise AssertionError("abort raises")
