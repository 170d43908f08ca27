"""The processes of one cluster as one controller holds them: started, stopped, killed, buried, and written down.

Carries out what `deploy.reconcile` decides. What is about to be started is written down first, so that a controller
that takes over knows of every process there is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.cluster_config import ClusterConfig
from deploy.hosted import STOP_SLACK_S, Hosted
from deploy.reconcile import Kind, State
from deploy.saved_state import Saved, SavedProcess, StateStore
from deploy.scheduling import chosen_node
from deploy.status import Crash
from deploy.wanted import Wanted
from diptych.errors import BadRequest
from diptych.membership import tombstone

MAX_CRASHES = 100  # that are remembered
LOG = structlog.get_logger()


class Pools:
    def __init__(
        self,
        config: ClusterConfig,
        entry_points: Mapping[str, str],
        store: StateStore,
        redis: Redis,
        on_change: Callable[[], None],
    ) -> None:
        self.wanted = Wanted(counts=config.counts)
        self.start_s: dict[Kind, float] = {}  # that workers take until they serve, as measured
        self.crashes: list[Crash] = []
        self.ended_at_s: dict[Kind, list[float]] = {kind: [] for kind in Kind}  # without being told to
        self._config = config
        self._entry_points = entry_points
        self._store = store
        self._redis = redis
        self._on_change = on_change
        self._hosted: dict[str, Hosted] = {}
        self._killing: set[str] = set()
        self._next_order = 1
        self._writing = asyncio.Lock()  # what is newer is written later

    def __iter__(self) -> Iterator[Hosted]:
        return iter(list(self._hosted.values()))

    def __len__(self) -> int:
        return len(self._hosted)

    def __getitem__(self, id: str) -> Hosted:
        return self._hosted[id]

    def find(self, name: str) -> Hosted:
        """By incarnation (of a router too, if only to be told what it is not for) or by the controller's name.

        Raises:
            BadRequest: nobody has this name.
        """
        for hosted in self:
            names = {hosted.id, hosted.worker_id, hosted.said("router_id")} - {""}
            if hosted.state is not State.DEAD and name in names:
                return hosted
        raise BadRequest(f"there is no worker {name!r}; see diptych status", param="worker")

    @property
    def counts(self) -> dict[Kind, int]:
        """What is wanted now: on the way down the doors go first, and nothing is started any more."""
        if not self.wanted.down:
            return self.wanted.counts
        if any(hosted.kind is Kind.ROUTER for hosted in self):
            alive = [h.kind for h in self if h.state in (State.STARTING, State.RUNNING) and not self.is_leaving(h)]
            return {kind: 0 if kind is Kind.ROUTER else alive.count(kind) for kind in Kind}
        return dict.fromkeys(Kind, 0)

    def is_leaving(self, hosted: Hosted) -> bool:
        return hosted.id in self.wanted.leaving

    async def take_over(self, tasks: asyncio.TaskGroup) -> None:
        """Go on from where a killed controller was, if there was one."""
        saved = await asyncio.to_thread(self._store.load)
        if saved is None:
            return
        LOG.info("taking over", processes=len(saved.processes), wanted=saved.wanted.counts)
        self.wanted, self._next_order, self.start_s = saved.wanted, saved.next_order, saved.start_s
        for process in saved.processes:
            self._add(process)
            self._follow(process.id, tasks)
            if process.told_to_stop:
                self.stop(process.id, tasks)

    async def start(self, kind: Kind, tasks: asyncio.TaskGroup, without: Collection[str] = ()) -> None:
        """Start one more, on none of the nodes `without`."""
        placed = [hosted.placed for hosted in self]
        node_id = await asyncio.to_thread(chosen_node, self._config, kind, placed, without)
        order, self._next_order = self._next_order, self._next_order + 1
        taken = {hosted.slot for hosted in self if hosted.kind is kind}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        self._add(SavedProcess(id=f"{kind}-{order}", kind=kind, order=order, slot=slot, node_id=node_id))
        await self.save()
        self._follow(f"{kind}-{order}", tasks)

    def stop(self, id: str, tasks: asyncio.TaskGroup) -> None:
        """Drain it and let it end; after the drain's deadline it is killed."""
        tasks.create_task(self._hosted[id].stop(self._config.limits.drain_timeout_s + STOP_SLACK_S))

    def kill(self, id: str, tasks: asyncio.TaskGroup) -> None:
        if id not in self._killing:
            self._killing.add(id)
            limit_s = self._config.limits.replace_after_s
            tasks.create_task(self._hosted[id].kill(f"it made no progress for {limit_s:g} s and was killed"))

    async def bury(self, id: str) -> None:
        """Leave a tombstone and forget it. Without Redis nothing changes: it is asked for again."""
        hosted = self._hosted[id]
        try:
            if hosted.worker_id:
                await tombstone(self._redis, self._config.name, hosted.worker_id)
        except RedisError as error:
            LOG.warning("no tombstone yet, Redis cannot be reached", worker_id=hosted.worker_id, error=str(error))
            return
        self.forget(id)

    def forget(self, id: str) -> None:
        del self._hosted[id]
        self._killing.discard(id)
        self.wanted = self.wanted.ended({id})
        self._on_change()

    async def save(self) -> None:
        async with self._writing:
            processes = [hosted.saved() for hosted in self]
            saved = Saved(wanted=self.wanted, next_order=self._next_order, processes=processes, start_s=self.start_s)
            await asyncio.to_thread(self._store.save, saved)

    def _add(self, process: SavedProcess) -> None:
        self._hosted[process.id] = Hosted(self._config, process, self._on_change)

    def _follow(self, id: str, tasks: asyncio.TaskGroup) -> None:
        tasks.create_task(self._live(self._hosted[id]))

    async def _live(self, hosted: Hosted) -> None:
        await hosted.live(self._entry_points[hosted.kind])
        if hosted.told_to_stop:
            return
        self.ended_at_s[hosted.kind].append(time.monotonic())
        LOG.warning("process ended", id=hosted.id, worker_id=hosted.worker_id, reason=hosted.reason)
        if hosted.crashed:
            crash = Crash(
                kind=hosted.kind,
                worker_id=hosted.worker_id,
                pid=hosted.hosting.pid if hosted.hosting else 0,
                log_path=hosted.log_path,
                reason=hosted.reason,
            )
            self.crashes = [*self.crashes, crash][-MAX_CRASHES:]
