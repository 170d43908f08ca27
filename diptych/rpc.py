"""Router-to-worker and worker-to-worker calls: gRPC carrying msgpack-encoded `diptych.messages` structs.

One table says what the internal service offers; handlers and stubs are both made from it, so there is one definition
of every message and no generated code on this path (docs/decisions/002). Errors of our tree travel as the status'
message and come out as the same class on the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio
import msgspec

from diptych import messages as m
from diptych.errors import DeadlineExceeded, DiptychError, InternalError, LegFailed, WireError, from_wire
from diptych.tls import CLUSTER_NAME, ClusterTls

SERVICE = "diptych.internal.Worker"
MAX_MESSAGE_BYTES = 64 << 20  # a prompt of 1M tokens is ~5 MB of msgpack; anything near this is a bug

Request = TypeVar("Request")
Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Method(Generic[Request, Reply]):
    name: str
    request: type[Request]
    reply: type[Reply]
    streams: bool = False

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.name}"


RESERVE = Method("Reserve", m.Reserve, m.Ticket)
START = Method("Start", m.Start, m.Started)
ABORT = Method("Abort", m.Abort, m.Aborted)
REVOKE = Method("Revoke", m.Revoke, m.Revoked)
MEET = Method("Meet", m.PeerHello, m.PeerHello)
FRAMES = Method("Frames", m.Subscribe, m.Frame, streams=True)
METHODS: tuple[Method[Any, Any], ...] = (RESERVE, START, ABORT, REVOKE, MEET, FRAMES)


class WorkerService(Protocol):
    """What a worker answers. Every method may raise any `DiptychError`."""

    async def reserve(self, request: m.Reserve) -> m.Ticket: ...
    async def start(self, request: m.Start) -> m.Started: ...
    async def abort(self, request: m.Abort) -> m.Aborted: ...
    async def revoke(self, request: m.Revoke) -> m.Revoked: ...
    async def meet(self, request: m.PeerHello) -> m.PeerHello: ...
    def frames(self, request: m.Subscribe) -> AsyncIterator[m.Frame]: ...


def add_to_server(service: WorkerService, server: grpc.aio.Server) -> None:
    """Register every method of the table on `server`."""
    handlers = {method.name: _handler(method, getattr(service, method.name.lower())) for method in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def make_server(options: tuple[tuple[str, Any], ...] = ()) -> grpc.aio.Server:
    return grpc.aio.server(options=(*_CHANNEL_OPTIONS, ("grpc.so_reuseport", 0), *options))


def listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Let `server` listen at host:port; returns the port.

    Args:
        credentials: None: in the clear.

    Raises:
        RuntimeError: it is taken, or the certificate cannot be used.
    """
    port: int
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    return port


class WorkerStub:
    """Calls one worker. Every failure is a `DiptychError`; a broken connection is `LegFailed`."""

    def __init__(self, address: str, tls: ClusterTls | None = None) -> None:
        """
        Args:
            tls: this process' own; None: the cluster uses none.
        """
        self.address = address
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        else:
            options = (*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", CLUSTER_NAME))
            self._channel = grpc.aio.secure_channel(address, tls.channel(), options=options)
        self._calls = {method.name: _multicallable(self._channel, method) for method in METHODS}

    async def call(self, method: Method[Request, Reply], request: Request, timeout_s: float) -> Reply:
        """One unary call.

        Raises:
            DiptychError: what the worker raised, `LegFailed` if it cannot be reached, `DeadlineExceeded` in time.
        """
        try:
            reply: Reply | None = await self._calls[method.name](request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _from_rpc(error, self.address) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            raise _if_not_ours(self.address) from None
        if reply is None:  # gRPC's way to say that it could not be decoded
            raise InternalError(f"worker at {self.address} gave an answer to {method.name} that is not a reply")
        return reply

    async def stream(self, method: Method[Request, Reply], request: Request) -> AsyncGenerator[Reply, None]:
        try:
            async for reply in self._calls[method.name](request):
                yield reply
        except grpc.aio.AioRpcError as error:
            raise _from_rpc(error, self.address) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            raise _if_not_ours(self.address) from None

    async def close(self) -> None:
        await self._channel.close()


_CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a replaced worker must not inherit its predecessor's back-off
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),  # internal traffic never goes through a proxy
)


def _handler(method: Method[Any, Any], behaviour: Callable[..., Any]) -> Any:
    decode = msgspec.msgpack.Decoder(method.request).decode
    encode = msgspec.msgpack.Encoder().encode
    if method.streams:

        async def answer_stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async for reply in behaviour(request):
                    yield reply
            except DiptychError as error:
                await _abort(context, error)

        return grpc.unary_stream_rpc_method_handler(answer_stream, decode, encode)

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request)
        except DiptychError as error:
            await _abort(context, error)

    return grpc.unary_unary_rpc_method_handler(answer, decode, encode)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: DiptychError) -> None:
    status = grpc.StatusCode[error.grpc_status]
    await context.abort(status, msgspec.json.encode(error.to_wire()).decode())


def _multicallable(channel: grpc.aio.Channel, method: Method[Any, Any]) -> Callable[..., Any]:
    make: Callable[..., Any] = channel.unary_stream if method.streams else channel.unary_unary
    call: Callable[..., Any]
    call = make(
        method.path,
        request_serializer=msgspec.msgpack.Encoder().encode,
        response_deserializer=msgspec.msgpack.Decoder(method.reply).decode,
    )
    return call


def _if_not_ours(address: str) -> BaseException:
    """gRPC cancels the callers of a channel that is closed under them, and refuses calls on it afterwards; only a task
    that was itself cancelled may pass a cancellation on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    return LegFailed(f"the connection to the worker at {address} was closed; it left the cluster")


def _from_rpc(error: grpc.aio.AioRpcError, address: str) -> DiptychError:
    details = error.details() or ""
    if details.startswith("["):
        try:
            return from_wire(msgspec.json.decode(details, type=WireError))
        except msgspec.DecodeError:
            pass

    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"worker at {address} did not answer in time")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return LegFailed(f"worker at {address} cannot be reached; it died or is restarting")
    return InternalError(f"worker at {address} failed: {error.code().name}")
