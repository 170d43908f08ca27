"""The gRPC door: `diptych.v1.Inference`, health and reflection. The same parsing, limits and errors as HTTP.

Protobuf types stay in this file and `grpc_convert`. Converts and delegates; decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn
from uuid import uuid4

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from diptych.errors import BadRequest, DeadlineExceeded, DiptychError, InternalError, Unauthorized
from diptych.rpc import listen
from diptych.tls import door_credentials
from diptych.v1 import inference_pb2 as pb
from diptych.v1 import inference_pb2_grpc
from router.abortable import AbortableEvents
from router.choices import Generation
from router.frontend import Frontend, HealthView
from router.grpc_convert import model_info, parse_generate, response, usage
from router.grpc_health import HealthDoor
from router.requests import DEADLINE_GRACE_S, MAX_REQUEST_ID_CHARS, is_request_id
from router.text_request import Origin

SERVICE: str = pb.DESCRIPTOR.services_by_name["Inference"].full_name

MAX_STREAMS = 4_096  # of one connection; far above what a router serves at a time
Context = Any  # grpc.aio.ServicerContext, which has no types


async def serve_grpc(frontend: Frontend, health: Callable[[], HealthView]) -> tuple[grpc.aio.Server, int]:
    """Start the door on `config.host:config.grpc_port`; the port is the bound one.

    Raises:
        OSError: the port is taken.
    """
    config = frontend.config
    credentials = door_credentials(config.tls_cert_file, config.tls_key_file)
    server = grpc.aio.server(
        interceptors=(KeyGate(frontend),),
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", config.max_body_bytes),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
        ),
    )
    inference_pb2_grpc.add_InferenceServicer_to_server(InferenceDoor(frontend), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthDoor(health, services=("", SERVICE)), server)
    health_service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((SERVICE, health_service, reflection.SERVICE_NAME), server)
    try:
        port = listen(server, f"{config.host}:{config.grpc_port}", credentials)
    except RuntimeError:
        raise OSError(f"cannot listen on {config.host}:{config.grpc_port}; choose another grpc_port or 0") from None
    await server.start()
    return server, port


class KeyGate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc.aio has no types
    """Refuses a call of the service without a right key before its message is received, as the HTTP door does."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        if details.method.startswith(f"/{SERVICE}/"):
            try:
                self._frontend.keys.tenant_of(_authorization(details.invocation_metadata))
            except Unauthorized as error:
                self._frontend.metrics.refused(error.code)
                self._frontend.logger.info("request_refused", method=details.method, code=error.code)
                return _refusal(error)
        return await continuation(details)


def _refusal(refused: DiptychError) -> Any:
    """A handler that only refuses. It takes a stream, of which it reads nothing."""

    async def refuse(_requests: Any, context: Context) -> None:
        await _abort(context, refused)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _authorization(metadata: Any) -> str:
    return str(dict(metadata or ()).get("authorization", ""))


class InferenceDoor(inference_pb2_grpc.InferenceServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend
        # by tenant and the client's request id
        self._running: dict[tuple[str, str], AbortableEvents[pb.GenerateResponse]] = {}

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        request_id = request.request_id or uuid4().hex
        try:
            tenant = self._tenant_of(context)
            async with aclosing(self._generate(request, request_id, tenant, context)) as messages:
                async for message in messages:
                    yield message
        except DiptychError as error:
            await _abort(context, error)
        except Exception as error:
            self._frontend.logger.error("request_failed", request=request_id, exc_info=error)
            await _abort(context, InternalError("the router failed on this request; its log has the place"))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        tenant = await self._admitted(context)
        if (events := self._running.get((tenant, request.request_id))) is not None:
            await events.abort()
        return pb.AbortResponse()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        await self._admitted(context)
        return model_info(self._frontend.model)

    def _tenant_of(self, context: Context) -> str:
        """
        Raises:
            Unauthorized: the call shows no key, or a wrong one.
        """
        return self._frontend.keys.tenant_of(_authorization(context.invocation_metadata()))

    async def _admitted(self, context: Context) -> str:
        """The same; a call without a right ends here."""
        try:
            return self._tenant_of(context)
        except DiptychError as error:
            await _abort(context, error)

    async def _generate(
        self, request: pb.GenerateRequest, request_id: str, tenant: str, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The messages of one call. From here on it can be aborted, and its id is taken."""
        if not is_request_id(request_id):
            self._frontend.metrics.refused(BadRequest.code)
            raise BadRequest(
                f"request_id is 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters without spaces",
                param="request_id",
            )
        if (tenant, request_id) in self._running:
            self._frontend.metrics.refused(BadRequest.code)
            raise BadRequest("request_id is in use by a running request", param="request_id")
        events = AbortableEvents(self._messages(request, request_id, tenant, context))
        self._running[tenant, request_id] = events
        expiring = asyncio.create_task(self._expire(events))
        try:
            async with aclosing(events):
                while (message := await events.next()) is not None:
                    yield message
        finally:
            expiring.cancel()
            del self._running[tenant, request_id]

    async def _expire(self, events: AbortableEvents[pb.GenerateResponse]) -> None:
        """For a client that does not read: it holds nothing any more, and is told why when it reads on."""
        await asyncio.sleep(self._frontend.config.request_deadline_ms / 1e3 + DEADLINE_GRACE_S)
        await events.abort(DeadlineExceeded("the request's deadline passed before its answer was read"))

    async def _messages(
        self, request: pb.GenerateRequest, request_id: str, tenant: str, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        generation = await self._start(request, tenant, context)
        async with aclosing(generation.events()) as events:
            async for event in events:
                yield response(request_id, event, usage(generation.usage) if generation.ended else None)

    async def _start(self, request: pb.GenerateRequest, tenant: str, context: Context) -> Generation:
        frontend = self._frontend
        metadata = dict(context.invocation_metadata() or ())
        traceparent = str(metadata.get("traceparent", ""))
        limit_ms = request.ttft_limit_ms if request.HasField("ttft_limit_ms") else None
        request_id = f"grpc-{uuid4().hex}"
        origin = Origin(request_id, frontend.clock(), traceparent, tenant=tenant, ttft_limit_ms=limit_ms)
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
