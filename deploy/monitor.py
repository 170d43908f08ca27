"""What the controller sees of its processes from outside: workers' frames and leases, routers' health.

It subscribes to every worker's frames like a router that never sends a request; a frame with stats comes once a second.
What that means is judged in `deploy.health`. Routers are asked at their public door, which also says how many workers
they would place a request on. Nothing here ends a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from uuid import uuid4

import httpx
from redis.asyncio import Redis

from deploy.cluster_config import Limits
from deploy.doors import UNVERIFIED, read_health
from deploy.health import Vitals
from deploy.reconcile import Health, Kind
from deploy.wanted import POOLS
from diptych import rpc
from diptych.errors import DiptychError
from diptych.membership import MembershipWatch
from diptych.messages import Subscribe, WorkerState
from diptych.tls import ClusterTls

TICK_S = 0.5
RETRY_S = 1.0
SETTLE_S = 1.0  # until every router has seen that a worker came or is leaving: a few of its looks at membership
DOOR_TIMEOUT_S = 2.0


class Monitor:
    def __init__(
        self,
        redis: Redis,
        cluster: str,
        limits: Limits,
        on_change: Callable[[], None],
        tls: ClusterTls | None = None,
    ) -> None:
        self._limits = limits
        self._on_change = on_change
        self._tls = tls
        self._watch = MembershipWatch(redis, cluster)
        self._observer = f"controller-{uuid4().hex}"
        self._vitals: dict[str, Vitals] = {}  # by the controller's name
        self._workers: dict[str, str] = {}  # the same: incarnation
        self._doors: dict[str, dict[Kind, int] | None] = {}  # of routers: workers that they would use, if known
        self._probing: dict[str, frozenset[str]] = {}  # of routers: incarnations that no canary has gone through yet
        self._queued: dict[str, int] = {}  # of routers: tokens of prompts that wait in them
        self._asked_s: dict[str, float] = {}  # of routers: when the door was asked what it answered last
        self._new_since_s: dict[str, float] = {}  # of workers that some router may not have seen yet
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._trust_from_s = 0.0  # on the clock: what routers said before is about a fleet that is changing

    def watch_worker(self, id: str, worker_id: str, address: str) -> None:
        """Begin to observe a worker that runs. Idempotent, as is `watch_router`."""
        if id not in self._tasks:
            self._vitals[id], self._workers[id] = Vitals(), worker_id
            self._new_since_s[id] = time.monotonic()
            self._tasks[id] = asyncio.create_task(self._read_frames(id, address))

    def watch_router(self, id: str, url: str) -> None:
        if id not in self._tasks:
            self._vitals[id], self._doors[id] = Vitals(lapsed=True), None  # its silence has no second witness
            self._tasks[id] = asyncio.create_task(self._ask_door(id, url))

    def keep(self, ids: set[str]) -> None:
        """Observe none but these any more."""
        for id in self._tasks.keys() - ids:
            self._forget(id)

    def _forget(self, id: str) -> None:
        if (task := self._tasks.pop(id, None)) is not None:
            task.cancel()
        for known in (
            self._vitals,
            self._workers,
            self._doors,
            self._probing,
            self._queued,
            self._asked_s,
            self._new_since_s,
        ):
            known.pop(id, None)

    def vitals(self, id: str) -> Vitals | None:
        return self._vitals.get(id)

    def health(self, id: str) -> Health:
        vitals = self._vitals.get(id)
        limits = self._limits
        return vitals.judge(limits.suspect_after_s, limits.replace_after_s) if vitals else Health.OK

    def is_draining(self, id: str) -> bool:
        """Whether a worker says so of itself; it may have asked to be replaced."""
        record = self._watch.workers.get(self._workers.get(id, ""))
        return record is not None and record.state is WorkerState.DRAINING

    def is_probing(self, id: str) -> bool:
        """Whether a router says that no canary has gone through this worker end to end yet, or may not know it yet."""
        worker_id = self._workers.get(id, "")
        is_new = id not in self._tasks or id in self._new_since_s
        return is_new or any(worker_id in probing for probing in self._probing.values())

    @property
    def queued_tokens(self) -> int:
        """Of prompts that wait in the routers, as these said last."""
        return sum(self._queued.values())

    def placeable(self) -> dict[Kind, int]:
        """Workers that every router would use; empty while a router has not said so lately."""
        seen = list(self._doors.values())
        if not seen or None in seen:
            return {}
        return {kind: min(counts[kind] for counts in seen if counts is not None) for kind in POOLS}

    def a_worker_leaves(self) -> None:
        """What routers said up to now still counts it."""
        self._trust_from_s = time.monotonic() + SETTLE_S
        self._doors = dict.fromkeys(self._doors)

    async def run(self) -> None:
        """Let time pass, for ever.

        Raises:
            Exception: what an observation failed with, a bug.
        """
        then = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            await self._watch.poll()
            for task in self._tasks.values():
                if task.done():
                    task.result()
            now = time.monotonic()
            elapsed_s, then = min(now - then, 2 * TICK_S), now  # longer: this observer was held up, not the others
            for id, vitals in self._vitals.items():
                if (worker_id := self._workers.get(id)) is not None:
                    vitals.lapsed = not self._watch.degraded and worker_id not in self._watch.workers
                before = self.health(id)
                vitals.age(elapsed_s)
                if self.health(id) is not before:
                    self._on_change()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self.keep(set())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_frames(self, id: str, address: str) -> None:
        stub = rpc.WorkerStub(address, self._tls)
        try:
            while True:
                frames = stub.stream(rpc.FRAMES, Subscribe(self._observer))
                with contextlib.suppress(DiptychError):
                    async with contextlib.aclosing(frames):
                        async for frame in frames:
                            self._vitals[id].heard(frame.stats)
                await asyncio.sleep(RETRY_S)
        finally:
            await stub.close()

    async def _ask_door(self, id: str, url: str) -> None:
        async with httpx.AsyncClient(timeout=DOOR_TIMEOUT_S, trust_env=False, verify=UNVERIFIED) as client:
            while True:
                asked_at_s = time.monotonic()
                counts, probing = None, self._probing.get(id, frozenset())
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    answer = await client.get(f"{url}/health")
                    health = read_health(answer.content)
                    self._vitals[id].heard()
                    counts, probing = health.num_workers, frozenset(health.details.probing)
                    self._queued[id] = health.details.queued_tokens
                    self._asked_s[id] = asked_at_s
                if asked_at_s < self._trust_from_s:
                    counts = None
                changed = (counts, probing) != (self._doors[id], self._probing.get(id))
                self._doors[id], self._probing[id] = counts, probing
                if self._settle() or changed:
                    self._on_change()
                await asyncio.sleep(TICK_S)

    def _settle(self) -> bool:
        """Note which workers every router has seen by now; whether there are any new ones."""
        seen_s = min(self._asked_s.get(id, -math.inf) for id in self._doors) - SETTLE_S
        before = len(self._new_since_s)
        self._new_since_s = {id: since_s for id, since_s in self._new_since_s.items() if since_s > seen_s}
        return len(self._new_since_s) < before
