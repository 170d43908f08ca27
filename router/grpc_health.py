"""`grpc.health.v1` answered from the router's own health, asked at the moment of the question."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.frontend import HealthView

WATCH_INTERVAL_S = 0.5

_Status = health_pb2.HealthCheckResponse


class HealthDoor(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    def __init__(self, health: Callable[[], HealthView], services: tuple[str, ...]) -> None:
        self._health = health
        self._services = services

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _Status(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes, until the client leaves."""
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                yield _Status(status=status)
                last = status
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if self._health().healthy else _Status.NOT_SERVING)
