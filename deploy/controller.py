"""The Ray actor that keeps the cluster as it is wanted: it starts, watches, replaces and stops processes.

Decisions are `deploy.reconcile`'s; this shell carries them out. A death is learned at once, because every actor's
`wait` is being awaited; a replacement is a new incarnation, and the dead one gets a tombstone as soon as its process is
proven to be gone. Only bytes, text and numbers cross its methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import msgspec
import structlog
from redis.exceptions import RedisError

from deploy.actors import ENTRY_POINTS
from deploy.cluster_config import ClusterConfig
from deploy.hosted import Hosted
from deploy.reconcile import Action, Forget, Kind, Start, State, Stop, Tombstone, reconcile
from diptych.membership import connect, tombstone

LOOK_AGAIN_S = 1.0  # nothing needs it but what failed the first time
STOP_SLACK_S = 5.0  # after draining: the last frames, and closing what is open
LOG = structlog.get_logger()


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    state: State
    pid: int  # 0 until it has started
    log_path: str
    record: msgspec.Raw  # what the process said about itself, JSON; `null` until it has started


class Crash(msgspec.Struct, frozen=True, kw_only=True):
    """A process that ended without being told to."""

    kind: Kind
    worker_id: str  # empty for a router, and when it died before it was ready
    pid: int  # 0: unknown
    log_path: str
    reason: str


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    processes: list[ProcessStatus]
    crashes: list[Crash]  # since the controller began
    complete: bool  # every wanted process runs


class Controller:
    """Holds the pools of one cluster. An async Ray actor: its methods share one event loop and need no lock."""

    def __init__(self, config_json: bytes, entry_points: dict[str, str] | None = None) -> None:
        self._config = msgspec.json.decode(config_json, type=ClusterConfig)
        self._entry_points = ENTRY_POINTS | (entry_points or {})
        self._wanted = self._config.wanted()
        self._hosted: dict[str, Hosted] = {}
        self._crashes: list[Crash] = []
        self._crashed_at_s: dict[Kind, list[float]] = {kind: [] for kind in Kind}
        self._orders = itertools.count(1)
        self._changed = asyncio.Event()
        self._redis = connect(self._config.redis_url)

    async def run(self) -> None:
        """Reconcile until `shutdown` has ended the last process. A bug in here ends it too, and everything with it."""
        async with asyncio.TaskGroup() as tasks:
            while self._hosted or any(self._wanted.values()):
                self._changed.clear()
                now_s = time.monotonic()
                observed = [hosted.observed() for hosted in self._hosted.values()]
                plan = reconcile(self._wanted, observed, self._crashed_at_s, now_s)
                for action in plan.actions:
                    await self._do(action, tasks)
                timeout_s = LOOK_AGAIN_S if plan.again_at_s is None else plan.again_at_s - now_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), timeout_s)
        await self._redis.aclose()

    async def status(self) -> bytes:
        """The JSON of a `ClusterStatus`."""
        processes = [_status(hosted) for hosted in self._hosted.values()]
        running = [process.kind for process in processes if process.state is State.RUNNING]
        complete = all(running.count(kind) == count for kind, count in self._wanted.items())
        return msgspec.json.encode(ClusterStatus(processes=processes, crashes=self._crashes, complete=complete))

    async def scale(self, kind: str, count: int) -> None:
        """Want `count` processes of a kind from now on."""
        self._wanted[Kind(kind)] = count
        self._changed.set()

    async def shutdown(self) -> None:
        """End everything, the doors first, and return when the last process is gone."""
        for kinds in ((Kind.ROUTER,), (Kind.PREFILL, Kind.DECODE)):
            for kind in kinds:
                await self.scale(kind, 0)
            await asyncio.gather(*(h.gone.wait() for h in list(self._hosted.values()) if h.kind in kinds))

    async def _do(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        match action:
            case Start(kind=kind):
                hosted = Hosted(self._config, kind, next(self._orders), self._changed.set)
                self._hosted[hosted.id] = hosted
                tasks.create_task(self._watch(hosted))
            case Stop(id=id):
                tasks.create_task(self._hosted[id].stop(self._config.drain_timeout_s + STOP_SLACK_S))
            case Tombstone(id=id):
                await self._bury(self._hosted[id])
            case Forget(id=id):
                self._forget(id)

    async def _watch(self, hosted: Hosted) -> None:
        await hosted.live(self._entry_points[hosted.kind])
        if hosted.crashed:
            crash = Crash(
                kind=hosted.kind,
                worker_id=hosted.worker_id,
                pid=hosted.hosting.pid if hosted.hosting else 0,
                log_path=hosted.log_path,
                reason=hosted.reason,
            )
            self._crashes.append(crash)
            self._crashed_at_s[hosted.kind].append(time.monotonic())
            LOG.warning("process died", kind=crash.kind, worker_id=crash.worker_id, pid=crash.pid, reason=crash.reason)

    async def _bury(self, hosted: Hosted) -> None:
        try:
            if hosted.worker_id:
                await tombstone(self._redis, self._config.cluster, hosted.worker_id)
        except RedisError as error:
            LOG.warning("no tombstone yet, Redis cannot be reached", worker_id=hosted.worker_id, error=str(error))
            return  # asked for again with the next look
        self._forget(hosted.id)

    def _forget(self, id: str) -> None:
        del self._hosted[id]
        self._changed.set()


def _status(hosted: Hosted) -> ProcessStatus:
    return ProcessStatus(
        kind=hosted.kind,
        state=hosted.state,
        pid=hosted.hosting.pid if hosted.hosting else 0,
        log_path=hosted.log_path,
        record=hosted.hosting.record if hosted.hosting else msgspec.Raw(b"null"),
    )
