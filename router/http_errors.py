"""The outermost layer of the HTTP door: request ids, and every failure as OpenAI's error object.

Also the one place that logs failures: code, status and request id, never a message that may quote a prompt.
"""

from __future__ import annotations

import math
from uuid import uuid4

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diptych.errors import Cancelled, DiptychError, InternalError
from diptych.telemetry import Logger
from router.requests import is_request_id

REQUEST_ID = "x-request-id"


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorBody


def error_json(error: DiptychError) -> bytes:
    return msgspec.json.encode(ErrorAnswer(ErrorBody(error.message, error.openai_type, error.param, error.code)))


def error_response(error: DiptychError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return Response(error_json(error), error.http_status, headers, "application/json")


async def plain_http_error(_request: object, error: Exception) -> Response:
    """Starlette's own 404 and 405, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    body = ErrorBody(error.detail, "invalid_request_error", None, "not_found" if error.status_code == 404 else "http")
    return Response(msgspec.json.encode(ErrorAnswer(body)), error.status_code, error.headers, "application/json")


def as_diptych_error(error: Exception) -> DiptychError:
    """Ours as they are; a lost client is `Cancelled`; anything else says nothing of its insides."""
    if isinstance(error, DiptychError):
        return error
    if isinstance(error, ClientDisconnect):
        return Cancelled("the client disconnected")
    return InternalError("the router failed on this request; its log has the place")


def log_failure(logger: Logger, request_id: str, raised: Exception, error: DiptychError) -> None:
    if not isinstance(raised, DiptychError | ClientDisconnect):
        logger.error("request_failed", request=request_id, code=error.code, exc_info=raised)
    elif error.http_status >= 500:
        logger.warning("request_failed", request=request_id, code=error.code, reason=error.message)
    else:
        logger.info("request_refused", request=request_id, code=error.code, param=error.param)


class ErrorLayer:
    """Pure ASGI middleware. An error after the headers were sent is the streaming answer's own business."""

    def __init__(self, app: ASGIApp, logger: Logger) -> None:
        self._app = app
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as raised:
            error = as_diptych_error(raised)
            log_failure(self._logger, request_id, raised, error)
            if not started:
                await error_response(error)(scope, receive, send_with_id)
        return None


def _request_id(given: str | None) -> str:
    """The client's, if it is short and printable; otherwise a new one."""
    return given if given and is_request_id(given) else uuid4().hex
