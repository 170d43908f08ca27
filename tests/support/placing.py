"""One router's placement with all that it looks at, on a fleet whose links lead nowhere; alone, or sharing its load."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from diptych.messages import Role, SamplingParams, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from kv_transfer.hashing import block_hashes, hash_key
from router.attempts import Attempts
from router.bookings import Bookings
from router.explain import ExplainRing
from router.fleet import Compatibility, Fleet
from router.limits import Limits
from router.placement.named import policy_named
from router.placement_metrics import PlacementMetrics
from router.placer import Booked, Placer
from router.prefix_index import PrefixIndex
from router.requests import Report, TokenRequest
from router.sharing.load import SharedLoad, Statements
from router.sharing.log import Log, ReservationLog
from router.sharing.metrics import ReservationMetrics
from router.sharing.reservations import Reservations
from router.sharing.talk import BACKGROUND_TIMEOUT_S, WAIT_S, Talk
from router.suspects import Suspects
from router.worker_link import WorkerLink

BLOCK_SIZE = 16
LIMITS = Limits(
    block_size=BLOCK_SIZE,
    block_bytes=1,
    max_context=1_024,
    fingerprint="fp",
    remote_prefill="prefer",
    reserve_timeout_ms=1_000,
    max_attempts=3,
)


class StillLink(WorkerLink):
    def __init__(self, record: WorkerRecord) -> None:
        self.record, self.connected = record, True
        self.stats = WorkerStats(blocks_free=64, prefill_tokens_per_s=1_000.0, decode_step_ms=10.0, num_running=1)


class World:
    """
    Args:
        log: None: there are no other routers to speak with.
    """

    def __init__(
        self, *worker_ids: str, policy: str = "min-ttft", seed: int = 1, log: Log | None = None, wait_s: float = WAIT_S
    ) -> None:
        self.fleet = Fleet("router", Compatibility("fp", BLOCK_SIZE), 3.0, make_logger("test", stream=io.StringIO()))
        self.index, self.suspects, self.others = PrefixIndex(), Suspects(), SharedLoad()
        self.bookings = Bookings(self.others)
        self.ring = ExplainRing(8, policy, "prefer")
        self.registry = CollectorRegistry()
        metrics = PlacementMetrics(self.registry, "tiny")
        for worker_id in worker_ids:
            self.fleet.adopt(StillLink(_record(worker_id)))
            self.index.add_worker(worker_id)
        self.reservations = None
        if log is not None:
            shared = ReservationMetrics(self.registry, "tiny")
            self.talk = Talk(
                log,
                Statements(self.bookings),
                self.others,
                self.index.guess,
                shared.others,
                quick_s=wait_s,
                patience_s=max(wait_s, BACKGROUND_TIMEOUT_S),
            )
            self.reservations = Reservations(self.talk, shared, wait_s)
        self.placer = Placer(
            LIMITS,
            policy_named(policy),
            seed,
            self.fleet,
            self.index,
            self.bookings,
            self.suspects,
            self.ring,
            metrics,
            self.reservations,
        )

    def request(self, name: str = "r", seed: int = 0, **changes: Any) -> tuple[TokenRequest, list[bytes]]:
        prompt = [seed] * 100
        request = TokenRequest(name, prompt, SamplingParams(max_tokens=8, seed=1), **changes)
        return request, block_hashes(hash_key("fp", b""), prompt, BLOCK_SIZE)

    async def place(self, name: str = "r", seed: int = 0) -> Booked:
        return await self.placer.place(*self.request(name, seed), Attempts(3), Report())

    def outcomes(self) -> dict[str, int]:
        """Placements by how they were reserved; those that did not happen are left out."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "diptych_reservations_total" and sample.value
        }


@asynccontextmanager
async def sharing(*worlds: World, meet: bool = True) -> AsyncIterator[None]:
    """Let routers speak with each other; with `meet`, begin when each has heard of all others."""
    tasks = [asyncio.create_task(world.reservations.run()) for world in worlds if world.reservations]
    try:
        async with asyncio.timeout(30.0):
            while meet and any(len(world.others.routers) < len(worlds) - 1 for world in worlds):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


def routers(redis: Redis, cluster: str, count: int, worker_ids: Iterable[str], wait_s: float = WAIT_S) -> list[World]:
    """Of one cluster, with another seed each."""
    names = tuple(worker_ids)
    logs = [ReservationLog(redis, cluster, f"router-{number}") for number in range(count)]
    return [World(*names, seed=17 * number + 1, log=log, wait_s=wait_s) for number, log in enumerate(logs)]


def shares(booked: Iterable[Booked], role: Role) -> Counter[str]:
    """How many requests each worker was given."""
    return Counter(each.placement.prefill_id if role is Role.PREFILL else each.placement.decode_id for each in booked)


def _record(worker_id: str) -> WorkerRecord:
    return WorkerRecord(
        worker_id=worker_id,
        role=Role(worker_id.split("-")[0]),
        address="127.0.0.1:1",
        state=WorkerState.READY,
        model="tiny",
        fingerprint="fp",
        block_size=BLOCK_SIZE,
        num_blocks=64,
        block_bytes=1,
        max_context=1_024,
        started_at=0.0,
    )
