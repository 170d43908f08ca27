"""The HTTP door: OpenAI's routes and the operational ones. Converts and delegates; decides nothing.

What the routes promise is written in docs; how bodies are parsed and answers rendered, in `openai_*`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import diptych
from diptych.errors import BadRequest, DeadlineExceeded, DiptychError, PayloadTooLarge, Unauthorized
from router.choices import Generation
from router.frontend import Frontend, HealthView
from router.http_answer import GenerationAnswer
from router.http_errors import ErrorLayer, plain_http_error
from router.json_body import Body, decode_body
from router.key_layer import KeyLayer
from router.openai_parse import RenderOptions, encode_chat, parse_chat, parse_completion
from router.openai_render import Renderer
from router.openai_render_chat import ChatRenderer
from router.openai_render_completion import CompletionRenderer
from router.openai_schema import ChatRequest, CommonRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from router.run_report import PLACEMENT_HEADER
from router.sampling import check_token_ids
from router.text_request import Origin, TextRequest

IGNORED_HEADER = "x-diptych-ignored"
TTFT_LIMIT_HEADER = "x-diptych-ttft-limit-ms"
MAX_TTFT_LIMIT_MS = 2**31 - 1
WANTED = "1"  # of PLACEMENT_HEADER in a request

Common = TypeVar("Common", bound=CommonRequest)
Parse = Callable[[Common, Frontend, Origin], Awaitable[tuple[TextRequest, RenderOptions]]]


def make_app(frontend: Frontend, health: Callable[[], HealthView], metrics_text: Callable[[], bytes]) -> Starlette:
    """The whole door as one ASGI application. `metrics_text` is the registry in Prometheus' text format."""
    door = HttpDoor(frontend, health, metrics_text)
    routes = [
        Route("/v1/chat/completions", door.chat, methods=["POST"]),
        Route("/v1/completions", door.complete, methods=["POST"]),
        Route("/v1/models", door.models),
        Route("/v1/models/{name:path}", door.model),
        Route("/tokenize", door.tokenize, methods=["POST"]),
        Route("/detokenize", door.detokenize, methods=["POST"]),
        Route("/health", door.health),
        Route("/live", door.live),
        Route("/metrics", door.metrics),
        Route("/version", door.version),
    ]
    layers = [
        Middleware(ErrorLayer, logger=frontend.logger),
        Middleware(KeyLayer, keys=frontend.keys, refused=frontend.metrics.refused),
    ]
    return Starlette(routes=routes, middleware=layers, exception_handlers={HTTPException: plain_http_error})


class HttpDoor:
    """One method per route."""

    def __init__(self, frontend: Frontend, health: Callable[[], HealthView], metrics_text: Callable[[], bytes]) -> None:
        self._frontend = frontend
        self._health = health
        self._metrics_text = metrics_text

    async def chat(self, request: Request) -> GenerationAnswer:
        return await self._generate(request, ChatRequest, parse_chat, ChatRenderer, "chatcmpl")

    async def complete(self, request: Request) -> GenerationAnswer:
        return await self._generate(request, CompletionRequest, parse_completion, CompletionRenderer, "cmpl")

    async def models(self, _request: Request) -> Response:
        return _json({"object": "list", "data": [self._model_entry()]})

    async def model(self, request: Request) -> Response:
        self._frontend.check_model(request.path_params["name"])
        return _json(self._model_entry())

    async def tokenize(self, request: Request) -> Response:
        body, ignored = await self._read(request, TokenizeRequest)
        self._frontend.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("give either prompt or messages", param="prompt")
        if body.messages is not None:
            tokens = await encode_chat(body.messages, self._frontend, add_generation_prompt=body.add_generation_prompt)
        else:
            encode = self._frontend.tokenizer.encode_async
            tokens = await encode(body.prompt or "", add_special=body.add_special_tokens)
        answer = {"count": len(tokens), "max_model_len": self._frontend.model.max_context, "tokens": tokens}
        return _json(answer, headers=_warning(ignored))

    async def detokenize(self, request: Request) -> Response:
        body, ignored = await self._read(request, DetokenizeRequest)
        self._frontend.check_model(body.model)
        check_token_ids("tokens", body.tokens, self._frontend.model.vocab_size)
        text = self._frontend.tokenizer.decode(body.tokens, skip_special=False)
        return _json({"prompt": text}, headers=_warning(ignored))

    async def health(self, request: Request) -> Response:
        """Open to all; where keys are required, what is behind the door is told to those who have one."""
        view = self._health()
        if self._frontend.model.simulated:
            view = replace(view, details={**view.details, "simulated": True})
        try:
            self._frontend.keys.tenant_of(request.headers.get("authorization", ""))
        except Unauthorized:
            view = _for_strangers(view)
        return _json(view, status=200 if view.healthy else 503)

    async def live(self, _request: Request) -> Response:
        return _json({"live": True})

    async def metrics(self, _request: Request) -> Response:
        return Response(self._metrics_text(), media_type=CONTENT_TYPE_LATEST)

    async def version(self, _request: Request) -> Response:
        return _json({"version": diptych.__version__})

    async def _generate(
        self, request: Request, kind: type[Common], parse: Parse[Common], renderer: type[Renderer], prefix: str
    ) -> GenerationAnswer:
        """Read, parse and start one generation. A refusal up to here never reaches the core."""
        frontend = self._frontend
        traceparent = request.headers.get("traceparent", "")
        state = request.scope["state"]
        origin = Origin(f"{prefix}-{uuid4().hex}", frontend.clock(), traceparent, state["request_id"], state["tenant"])
        try:
            origin = replace(origin, ttft_limit_ms=_ttft_limit_ms(request))
            body, ignored = await self._read(request, kind)
            text_request, options = await parse(body, frontend, origin)
        except DiptychError as error:
            frontend.metrics.refused(error.code)
            raise
        generation = Generation(frontend, text_request)
        rendering = renderer(
            generation,
            options,
            frontend.tokenizer,
            id=origin.request_id,
            created=int(time.time()),
            model=frontend.model.name,
        )
        return GenerationAnswer(
            generation,
            rendering,
            stream=options.stream,
            show_placement=request.headers.get(PLACEMENT_HEADER) == WANTED,
            headers=_warning(ignored),
            logger=frontend.logger,
        )

    async def _read(self, request: Request, kind: type[Body]) -> tuple[Body, tuple[str, ...]]:
        """Raises `PayloadTooLarge` as soon as that is known, and `BadRequest` for what is not a `kind`."""
        try:
            async with asyncio.timeout(self._frontend.config.request_deadline_ms / 1e3):
                body = await self._read_body(request)
        except TimeoutError:
            raise DeadlineExceeded("the body did not come before the request's deadline") from None
        return decode_body(body, kind)

    async def _read_body(self, request: Request) -> bytes:
        limit = self._frontend.config.max_body_bytes
        body = bytearray()
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise _too_large(limit)
        return bytes(body)

    def _model_entry(self) -> dict[str, Any]:
        model = self._frontend.model
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "diptych",
            "max_model_len": model.max_context,
            **({"simulated": True} if model.simulated else {}),
        }


def _for_strangers(view: HealthView) -> HealthView:
    """Without reasons, which name addresses and errors: how many there are of what, and who is yet to prove itself."""
    counts = {name: value for name, value in view.details.items() if isinstance(value, int)}
    probing = dict.fromkeys(view.details.get("probing", ()), "")
    return replace(view, reasons=(), details={**counts, "probing": probing})


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _warning(ignored: tuple[str, ...]) -> dict[str, str]:
    return {IGNORED_HEADER: ",".join(ignored)} if ignored else {}


def _ttft_limit_ms(request: Request) -> int | None:
    """Raises `BadRequest` for what is not a number of milliseconds."""
    given = request.headers.get(TTFT_LIMIT_HEADER)
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 10 or int(given) > MAX_TTFT_LIMIT_MS:
        what = f"{TTFT_LIMIT_HEADER} is a whole number of milliseconds, 0 (no limit) to {MAX_TTFT_LIMIT_MS}"
        raise BadRequest(what, param=TTFT_LIMIT_HEADER)
    return int(given)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit} bytes (max_body_bytes)")
