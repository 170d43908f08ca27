"""How busy each phase was over time: the cluster's status, looked at while a run goes on.

A sample a second, because asking costs the machine something too; a worker counts as busy if it had a sequence in its
batch when it last said so, after a step. Prompts that fit into one step are never seen that way: how busy the phases
were is in each run's timeline (`loadgen.report.occupancy`), from what requests report.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec

from loadgen.experiment.admin import AdminDoor, Stats, Status
from loadgen.experiment.shape import SystemUnavailable

SAMPLE_S = 1.0


class RoleUse(msgspec.Struct, frozen=True, kw_only=True):
    """Of one role's workers, at each sample."""

    busy: list[float]  # share of the workers
    kv_used: list[float]  # share of their KV blocks that sequences hold
    waiting: list[float]  # sequences, over all of them

    @property
    def mean_busy(self) -> float:
        return sum(self.busy) / len(self.busy) if self.busy else 0.0


class Use(msgspec.Struct, frozen=True, kw_only=True):
    at_s: list[float]  # from the start of the run
    prefill: RoleUse | None  # none without prefill workers
    decode: RoleUse


class Sampler:
    def __init__(self, door: AdminDoor, clock: Callable[[], float] = time.monotonic) -> None:
        self._door = door
        self._clock = clock
        self._samples: list[tuple[float, Status]] = []

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch(self._clock()))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def use(self) -> Use | None:
        """None if the cluster never said anything."""
        if not self._samples:
            return None
        by_role = {role: [_stats(status, role) for _, status in self._samples] for role in ("prefill", "decode")}
        return Use(
            at_s=[round(at, 3) for at, _ in self._samples],
            prefill=_role(by_role["prefill"]) if any(by_role["prefill"]) else None,
            decode=_role(by_role["decode"]),
        )

    async def _watch(self, began_s: float) -> None:
        while True:
            with contextlib.suppress(SystemUnavailable):  # a sample less; the run itself will say what is wrong
                self._samples.append((self._clock() - began_s, await self._door.status()))
            await asyncio.sleep(SAMPLE_S)


def _stats(status: Status, role: str) -> list[Stats]:
    return [each.stats for each in status.processes if each.kind == role and each.stats is not None]


def _role(samples: Sequence[Sequence[Stats]]) -> RoleUse:
    return RoleUse(
        busy=[_share(sum(each.num_running > 0 for each in stats), len(stats)) for stats in samples],
        kv_used=[
            _share(sum(each.blocks_used for each in stats), sum(s.blocks_total for s in stats)) for stats in samples
        ],
        waiting=[float(sum(each.num_waiting for each in stats)) for stats in samples],
    )


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
