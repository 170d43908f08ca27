"""The Ray actor that keeps the cluster as it is wanted: it starts, watches, drains, replaces and ends processes.

Decisions are `deploy.reconcile`'s and `deploy.wanted`'s, deeds `deploy.pools`'. A death is learned at once, because
every actor's end is being awaited; a replacement is a new incarnation, and the dead one gets a tombstone as soon as
its process is proven to be gone. A controller that is killed, or meets a bug of its own, is started again by Ray, reads
what it had written down, and takes over what runs without touching it. Only bytes, text and numbers cross its methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

import msgspec
import structlog

from deploy.actors import ENTRY_POINTS
from deploy.autoscaling import Autoscaling
from deploy.cluster_config import ClusterConfig
from deploy.doors import door_url
from deploy.draining import DrainingNodes
from deploy.hosted import Hosted
from deploy.monitor import Monitor
from deploy.pools import Pools
from deploy.process_config import process_config
from deploy.reconcile import Action, Forget, Health, Kill, Kind, Observed, Start, State, Stop, Tombstone, reconcile
from deploy.saved_state import StateStore
from deploy.status import ClusterStatus, ProcessStatus
from deploy.wanted import Wanted
from diptych.errors import BadRequest, DiptychError
from diptych.membership import connect
from diptych.tls import cluster_tls

LOOK_AGAIN_S = 1.0  # nothing needs it but what failed the first time
LOG = structlog.get_logger()


class Controller:
    """Holds the pools of one cluster. An async Ray actor: its methods share one event loop and need no lock."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it; what it makes belongs to the actor's event loop
        self, config_json: bytes, run_id: str, entry_points: dict[str, str] | None = None
    ) -> None:
        self._config = msgspec.json.decode(config_json, type=ClusterConfig)
        self._store = StateStore(run_id)
        self._redis = connect(self._config.redis_url)
        self._changed = asyncio.Event()
        tls = cluster_tls(process_config(self._config, Kind.ROUTER, slot=0))
        self._monitor = Monitor(self._redis, self._config.name, self._config.limits, self._changed.set, tls)
        self._pools = Pools(
            self._config, ENTRY_POINTS | (entry_points or {}), self._store, self._redis, self._changed.set
        )
        self._draining_nodes = DrainingNodes()
        self._autoscaling: Autoscaling | None = None  # as soon as it is in charge
        self._in_charge = asyncio.Event()  # it knows what its predecessor knew
        self._running = asyncio.create_task(self._run())
        self._running.add_done_callback(_crash_with)

    async def status(self) -> bytes:
        """The JSON of a `ClusterStatus`."""
        await self._in_charge.wait()
        processes = [self._status_of(hosted) for hosted in self._pools]
        settled = [p.kind for p in processes if _is_settled(p)]
        counts = self._pools.counts
        return msgspec.json.encode(
            ClusterStatus(
                name=self._config.name,
                model=self._config.served_model,
                wanted=counts,
                processes=processes,
                crashes=self._pools.crashes,
                complete=len(settled) == len(processes) and all(settled.count(kind) == n for kind, n in counts.items()),
                placeable=self._monitor.placeable(),
                going_down=self._pools.wanted.down,
                controller_pid=os.getpid(),
                autoscale=self._autoscaling.status(time.monotonic()) if self._autoscaling else None,
            )
        )

    async def scale(self, counts: dict[str, int]) -> bytes:
        """Want so many processes from now on. All verbs return an empty answer, or the JSON of a `WireError`."""
        pin = self._config.autoscale.mode == "on"
        by_kind = {Kind(kind): count for kind, count in counts.items()}
        return await self._want(lambda wanted: wanted.scaled(by_kind, pin=pin))

    async def release(self, pools: list[str]) -> bytes:
        """Let the load decide again about pools whose count a user has said."""

        def released(wanted: Wanted) -> Wanted:
            if self._config.autoscale.mode != "on":
                mode = self._config.autoscale.mode
                raise BadRequest(f"autoscale.mode is {mode!r}: the load decides about no pool; give a number")
            return wanted.released([Kind(pool) for pool in pools])

        return await self._want(released)

    async def drain(self, name: str, replace: bool) -> bytes:
        """Let a worker finish and end; another takes its place if `replace`."""

        def drained(wanted: Wanted) -> Wanted:
            hosted = self._pools.find(name)
            return wanted.without(hosted.id, hosted.kind, replace=replace)

        return await self._want(drained)

    async def change_role(self, name: str, role: str) -> bytes:
        """Let a worker finish and end; one of the other role takes its place."""

        def moved(wanted: Wanted) -> Wanted:
            hosted = self._pools.find(name)
            return wanted.moved(hosted.id, hosted.kind, Kind(role))

        return await self._want(moved)

    async def shutdown(self) -> None:
        """End everything, the doors first, and return when the last process is gone."""
        await self._want(Wanted.nothing)
        await asyncio.shield(self._running)

    async def _want(self, change: Callable[[Wanted], Wanted]) -> bytes:
        await self._in_charge.wait()
        try:
            self._pools.wanted = change(self._pools.wanted)
        except DiptychError as error:
            return msgspec.json.encode(error.to_wire())
        if not self._running.done():
            await self._pools.save()
        self._changed.set()
        return b""

    async def _run(self) -> None:
        """Reconcile until everything has gone that was to go. A bug in here ends this process: see `_crash_with`."""
        async with asyncio.TaskGroup() as tasks:
            monitoring = tasks.create_task(self._monitor.run())
            await self._pools.take_over(tasks)
            self._autoscaling = Autoscaling(self._config.autoscale, self._pools, self._monitor, self._is_leaving)
            self._in_charge.set()
            while len(self._pools) or not self._pools.wanted.down:
                self._changed.clear()
                await asyncio.to_thread(self._draining_nodes.refresh)
                self._observe()
                now_s = time.monotonic()
                self._autoscaling.look(now_s)
                plan = reconcile(
                    self._pools.counts,
                    [self._observed(hosted) for hosted in self._pools],
                    self._pools.ended_at_s,
                    now_s,
                    self._monitor.placeable(),
                    self._config.surge,
                )
                for action in plan.actions:
                    await self._do(action, tasks)
                await self._pools.save()
                timeout_s = LOOK_AGAIN_S if plan.again_at_s is None else plan.again_at_s - now_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), timeout_s)
            monitoring.cancel()
        await self._monitor.close()
        await self._redis.aclose()
        await asyncio.to_thread(self._store.erase)

    async def _do(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        match action:
            case Start(kind=kind):
                await self._pools.start(kind, tasks, self._draining_nodes.ids)
            case Stop(id=id):
                if self._pools[id].kind is not Kind.ROUTER:
                    self._monitor.a_worker_leaves()
                self._pools.stop(id, tasks)
            case Kill(id=id):
                self._pools.kill(id, tasks)
            case Tombstone(id=id):
                await self._pools.bury(id)
            case Forget(id=id):
                self._pools.forget(id)

    def _observe(self) -> None:
        """Watch what runs, and nothing else."""
        running = {hosted.id for hosted in self._pools if hosted.state in (State.RUNNING, State.STOPPING)}
        self._monitor.keep(running)
        for hosted in self._pools:
            if hosted.state is not State.RUNNING:
                continue
            if hosted.kind is Kind.ROUTER:
                self._monitor.watch_router(hosted.id, door_url(hosted.record_fields))
            else:
                self._monitor.watch_worker(hosted.id, hosted.worker_id, hosted.said("address"))

    def _observed(self, hosted: Hosted) -> Observed:
        return Observed(
            hosted.id,
            hosted.kind,
            hosted.state,
            hosted.order,
            hosted.proven_dead,
            self._monitor.health(hosted.id),
            self._is_leaving(hosted),
            self._pools.wanted.leaving.get(hosted.id),
        )

    def _is_leaving(self, hosted: Hosted) -> bool:
        """Because somebody wants it, because the worker itself asked to be replaced, or because its node goes."""
        on_node = hosted.hosting.node_id if hosted.hosting and hosted.kind is not Kind.ROUTER else ""
        return (
            self._pools.is_leaving(hosted)
            or self._monitor.is_draining(hosted.id)
            or on_node in self._draining_nodes.ids
        )

    def _status_of(self, hosted: Hosted) -> ProcessStatus:
        vitals = self._monitor.vitals(hosted.id)
        return ProcessStatus(
            id=hosted.id,
            kind=hosted.kind,
            state=hosted.state,
            health=self._monitor.health(hosted.id),
            probing=hosted.state is State.RUNNING and self._monitor.is_probing(hosted.id),
            leaving=self._is_leaving(hosted) or hosted.state is State.STOPPING,
            becomes=self._pools.wanted.leaving.get(hosted.id),
            hosting=hosted.hosting,
            log_path=hosted.log_path,
            record=hosted.record,
            stats=vitals.stats if vitals else None,
        )


def _is_settled(process: ProcessStatus) -> bool:
    serves = process.state is State.RUNNING and not process.probing and process.health is Health.OK
    return serves and not process.leaving


def _crash_with(task: asyncio.Task[None]) -> None:
    """A controller that does not reconcile is none: end the process, and Ray starts it anew."""
    if not task.cancelled() and (error := task.exception()) is not None:
        LOG.error("the controller failed and begins again", exc_info=error)
        os._exit(1)
