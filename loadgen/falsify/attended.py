"""A cluster that is asked again for its prefill workers after a run in which none was used.

Whether the router found none worth while, which is an answer, or there was none to be found, which makes a trial void,
no figure of the run says. Knows nothing of trials: it is the backend with one question more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from loadgen.client.config import RunConfig
from loadgen.experiment.admin import AdminDoor
from loadgen.experiment.run import Backend
from loadgen.experiment.shape import Misfit, Shape
from loadgen.experiment.use import Use
from loadgen.report.result import RunResult


class Attended:
    """
    Args:
        door: of the cluster at this moment.
    """

    def __init__(self, backend: Backend, door: Callable[[], AdminDoor | None]) -> None:
        self._backend = backend
        self._door = door

    async def shape(self, shape: Shape) -> tuple[str, str]:
        return await self._backend.shape(shape)

    async def settle(self, config: RunConfig) -> None:
        await self._backend.settle(config)

    async def measure(self, config: RunConfig, shape: Shape, records_path: Path) -> tuple[RunResult, Use | None]:
        """
        Raises:
            Misfit: no prefill worker was used, and not all that the shape has are there.
            SystemUnavailable: the admin door does not say.
        """
        result, use = await self._backend.measure(config, shape, records_path)
        phases, door = result.summary.phases, self._door()
        if shape.prefill and phases and not phases.remote_share and door:
            there = (await door.status()).placeable.get("prefill", 0)
            if there != shape.prefill:
                raise Misfit(f"no request to {shape} was prefilled remotely: {there} of its prefill workers are there")
        return result, use

    async def close(self) -> None:
        await self._backend.close()
