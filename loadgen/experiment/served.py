"""Measures cells on a real system over HTTP: the load generator's own runs, and how busy each phase was meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from diptych.trust import trusting
from loadgen.client.config import Progress, RunConfig
from loadgen.client.run import run_once
from loadgen.experiment.admin import AdminDoor
from loadgen.experiment.placement import ask_placement
from loadgen.experiment.shape import Shape, System, SystemUnavailable
from loadgen.experiment.trust import hint
from loadgen.experiment.use import Sampler, Use
from loadgen.report.result import STOPPED, RunResult

TIMEOUT_S = 30.0


class Model(msgspec.Struct):
    id: str


class Models(msgspec.Struct):
    """What /v1/models answers."""

    data: list[Model]


class Served:
    """
    Args:
        door: of the system's cluster at this moment; None: how busy it was stays unknown.
        headers: of every request, e.g. an API key.
        ca_file: PEM, of the authorities that an https door is believed by; empty: the system's.
    """

    def __init__(
        self,
        system: System,
        door: Callable[[], AdminDoor | None],
        headers: dict[str, str],
        on_progress: Callable[[Progress], None] = lambda _: None,
        ca_file: str = "",
    ) -> None:
        self._system = system
        self._door = door
        self._headers = headers
        self._on_progress = on_progress
        self._ca_file = ca_file

    @property
    def cluster(self) -> str:
        return self._system.cluster

    async def shape(self, shape: Shape) -> tuple[str, str]:
        """
        Raises:
            SystemUnavailable: the system cannot be had; `Misfit` where its router places in another way.
        """
        base_url = await self._system.shape(shape)
        trust = trusting(self._ca_file) if base_url.startswith("https:") else True
        async with httpx.AsyncClient(headers=self._headers, timeout=TIMEOUT_S, trust_env=False, verify=trust) as http:
            model = await _model(http, base_url)
            (await ask_placement(http, base_url)).check(shape, base_url)
        return base_url, model

    async def settle(self, config: RunConfig) -> None:
        """
        Raises:
            SystemUnavailable: nothing was answered.
            asyncio.CancelledError: it was cancelled, which the client takes for the end of its run.
        """
        result = await run_once(config, headers=self._headers, ca_file=self._ca_file)
        if STOPPED in result.invalid_because:
            raise asyncio.CancelledError
        if not result.summary.succeeded:
            raise SystemUnavailable(f"no request came to an end at {config.base_url}: {result.summary.failures}")

    async def measure(self, config: RunConfig, shape: Shape, records_path: Path) -> tuple[RunResult, Use | None]:
        door = self._door()
        run = run_once(
            config,
            headers=self._headers,
            ca_file=self._ca_file,
            records_path=records_path,
            on_progress=self._on_progress,
        )
        if door is None:
            return await run, None
        sampler = Sampler(door)
        async with sampler.watching():
            result = await run
        return result, sampler.use()

    async def close(self) -> None:
        await self._system.close()


async def _model(http: httpx.AsyncClient, base_url: str) -> str:
    """The name clients use: the only model, or the first one, that the server lists."""
    try:
        answer = (await http.get(f"{base_url}/v1/models")).raise_for_status()
        return msgspec.json.decode(answer.content, type=Models).data[0].id
    except (httpx.HTTPError, ValueError, IndexError) as error:
        raise SystemUnavailable(
            f"{base_url}/v1/models does not say which model is served: {error}{hint(error)}"
        ) from error
