"""The router's admin door: workers, index state, and why requests went where they went. Read only.

On a port of its own, by default on loopback: it has no authentication. Nothing here holds a prompt or a token.

    GET /workers          who is there, what each reports, whether it is placed on
    GET /index            the prefix index: its size, what it believes of each worker, why it may be old
    GET /explain          ids of the latest placements, newest first (?limit=N)
    GET /explain/{id}     one of them, by the answer's id or the client's X-Request-Id
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from diptych.errors import BadRequest
from diptych.telemetry import Logger
from router.explain import ExplainRing
from router.fleet import Fleet
from router.http_errors import ErrorLayer, plain_http_error
from router.index_reader import IndexReader

DEFAULT_LIMIT = 100
MAX_LIMIT_DIGITS = 9


def make_admin_app(fleet: Fleet, reader: IndexReader, ring: ExplainRing, log: Logger) -> Starlette:
    """The whole door as one ASGI application."""
    door = _AdminDoor(fleet, reader, ring)
    routes = [
        Route("/workers", door.workers),
        Route("/index", door.index),
        Route("/explain", door.latest),
        Route("/explain/{request_id:path}", door.explain),
    ]
    layers = [Middleware(ErrorLayer, logger=log)]
    return Starlette(routes=routes, middleware=layers, exception_handlers={HTTPException: plain_http_error})


@dataclass(frozen=True, slots=True)
class _AdminDoor:
    fleet: Fleet
    reader: IndexReader
    ring: ExplainRing

    async def workers(self, _request: Request) -> Response:
        placed_on = [
            {
                "worker": record,
                "placeable": self.fleet.is_placeable(record.worker_id),
                "probing": not self.fleet.proving.is_proved(record.worker_id),
                "stats": stats,
            }
            for record, stats in self.fleet.reports()
        ]
        return _json({"workers": placed_on, "refused": self.fleet.refused})

    async def index(self, _request: Request) -> Response:
        index = self.reader.index
        workers = {
            worker_id: {"blocks": index.num_blocks(worker_id), "position": index.position(worker_id)}
            for worker_id in index.workers
        }
        accuracy = index.accuracy
        return _json(
            {
                "blocks": len(index),
                "bytes": index.nbytes,
                "precision": accuracy.precision,
                "recall": accuracy.recall,
                "degraded": self.reader.degraded,
                "workers": workers,
            }
        )

    async def latest(self, request: Request) -> Response:
        limit = request.query_params.get("limit", str(DEFAULT_LIMIT))
        if not limit.isascii() or not limit.isdigit() or len(limit) > MAX_LIMIT_DIGITS:
            raise BadRequest("limit is a number of requests", param="limit")
        return _json({"requests": self.ring.latest(int(limit))})

    async def explain(self, request: Request) -> Response:
        explanation = self.ring.explain(request.path_params["request_id"])
        if explanation is None:
            raise HTTPException(404, f"this router remembers no such request; it keeps the latest {self.ring.size}")
        return _json(explanation)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), 200, None, "application/json")
