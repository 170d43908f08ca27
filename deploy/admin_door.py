"""The admin door: what `diptych status`, `scale`, `drain`, `role` and `down` ask, over HTTP with a key.

    GET  /status                                        a `ClusterStatus`
    GET  /metrics                                       the same as Prometheus text, as far as it is numbers
    POST /scale   {"prefill": 3, "decode": "auto"}     auto: as the load says, with autoscaling
    POST /drain   {"worker": "decode-…", "replace": true}
    POST /role    {"worker": "prefill-…", "role": "decode"}
    POST /down

Every request carries `Authorization: Bearer KEY`. A verb answers as soon as it is noted (202); its effect shows in the
status, and `deploy.api` waits for it. Lives in the process of `diptych up`, so that it outlives the controller.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.reconcile import Kind
from deploy.status import ClusterError, ClusterStatus
from deploy.status_metrics import CONTENT_TYPE, exposition
from deploy.wanted import check_counts
from diptych.errors import BadRequest, DiptychError, NoCapacity, PayloadTooLarge, Unauthorized

MAX_BODY_BYTES = 64 << 10
AUTO = "auto"
Body = TypeVar("Body", bound=msgspec.Struct)


class Verbs(Protocol):
    """What the door opens to; a `Cluster`."""

    def status(self) -> ClusterStatus: ...
    def scale(self, counts: dict[Kind, int]) -> None: ...
    def release(self, pools: Sequence[Kind]) -> None: ...
    def drain(self, worker: str, *, replace: bool) -> None: ...
    def change_role(self, worker: str, role: Kind) -> None: ...


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefill: int | Literal["auto"] | None = None
    decode: int | Literal["auto"] | None = None
    router: int | None = None


class Drain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    worker: str
    replace: bool = True


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    worker: str
    role: Kind


class Down(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


def make_admin_app(cluster: Verbs, key: str, down: Callable[[], None]) -> Starlette:
    """
    Args:
        key: every request has to carry it.
        down: called when the cluster is told to go down.
    """
    door = AdminDoor(cluster, down)
    routes = [
        Route("/status", _guarded(door.status, key)),
        Route("/metrics", _guarded(door.metrics, key)),
        Route("/scale", _guarded(door.scale, key), methods=["POST"]),
        Route("/drain", _guarded(door.drain, key), methods=["POST"]),
        Route("/role", _guarded(door.role, key), methods=["POST"]),
        Route("/down", _guarded(door.down, key), methods=["POST"]),
    ]
    return Starlette(routes=routes)


class AdminDoor:
    """One method per route. The controller is asked in a thread: Ray's calls block."""

    def __init__(self, cluster: Verbs, down: Callable[[], None]) -> None:
        self._cluster = cluster
        self._down = down

    async def status(self, _request: Request) -> Response:
        return _json(await run_in_threadpool(self._cluster.status))

    async def metrics(self, _request: Request) -> Response:
        status = await run_in_threadpool(self._cluster.status)
        return Response(exposition(status), media_type=CONTENT_TYPE)

    async def scale(self, request: Request) -> Response:
        body = await _read(request, Scale)
        given = {kind: count for kind in Kind if (count := getattr(body, kind.value)) is not None}
        if not given:
            raise BadRequest("give a count of at least one pool, e.g. prefill=3")
        counts = {kind: count for kind, count in given.items() if count != AUTO}
        check_counts(counts)  # before anything is released: all or nothing
        if released := [kind for kind, count in given.items() if count == AUTO]:
            await run_in_threadpool(self._cluster.release, released)
        if counts:
            await run_in_threadpool(self._cluster.scale, counts)
        return _json({}, 202)

    async def drain(self, request: Request) -> Response:
        body = await _read(request, Drain)
        await run_in_threadpool(self._cluster.drain, body.worker, replace=body.replace)
        return _json({}, 202)

    async def role(self, request: Request) -> Response:
        body = await _read(request, Role)
        await run_in_threadpool(self._cluster.change_role, body.worker, body.role)
        return _json({}, 202)

    async def down(self, request: Request) -> Response:
        await _read(request, Down)
        self._down()
        return _json({}, 202)


def _guarded(answer: Callable[[Request], Awaitable[Response]], key: str) -> Callable[[Request], Awaitable[Response]]:
    """Nobody without the key gets an answer; every refusal is our error as JSON."""

    async def guarded(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            if not secrets.compare_digest(given.encode(), key.encode()):
                raise Unauthorized("the admin door needs its key: Authorization: Bearer KEY")
            return await answer(request)
        except DiptychError as error:
            return _json(error.to_wire(), error.http_status)
        except ClusterError as error:
            unavailable = NoCapacity(str(error))
            return _json(unavailable.to_wire(), unavailable.http_status)

    return guarded


async def _read(request: Request, kind: type[Body]) -> Body:
    """
    Raises:
        BadRequest: the body is not a `kind`; an empty one counts as {}.
        PayloadTooLarge: it is far longer than any.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=kind)
    except ValueError as error:  # not JSON, of another shape, or not UTF-8
        raise BadRequest(f"the body is not what this route takes: {error}") from None


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
