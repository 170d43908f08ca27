"""One process of the cluster as the controller holds it: its Ray actor, its state, and the proof of its death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import psutil
import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.actors import CONCURRENT_METHODS, Hosting, ProcessHost
from deploy.cluster_config import ClusterConfig
from deploy.reconcile import Kind, Observed, State

KILL_TIMEOUT_S = 10.0  # from SIGKILL to the end of a process; longer only when the kernel holds it


class Hosted:
    """Its state only moves forward: starting, running, stopping, dead."""

    def __init__(self, config: ClusterConfig, kind: Kind, order: int, on_change: Callable[[], None]) -> None:
        self.kind = kind
        self.id = f"{kind}-{order}"
        self.log_path = f"{config.log_folder}/{self.id}.log"
        self.state = State.STARTING
        self.hosting: Hosting | None = None
        self.reason = ""  # why it ended, when nobody told it to
        self.gone = asyncio.Event()
        self._order = order
        self._told_to_stop = False
        self._proven_dead = False
        self._on_change = on_change
        self._config_json = msgspec.json.encode(config.process(kind))
        self._actor = ray.remote(ProcessHost).options(**_actor_options(config, kind)).remote(self.log_path)

    @property
    def worker_id(self) -> str:
        """The incarnation in membership; empty for a router, and before it was ready."""
        return self._said("worker_id")

    @property
    def crashed(self) -> bool:
        return self.state is State.DEAD and not self._told_to_stop

    def observed(self) -> Observed:
        return Observed(self.id, self.kind, self.state, self._order, self._proven_dead)

    async def live(self, entry_point: str) -> None:
        """Follow its life from start to proven end."""
        try:
            hosting = await self._actor.start.remote(entry_point, str(self.kind), self._config_json)
            self.hosting = msgspec.json.decode(hosting, type=Hosting)
            if self.state is State.STARTING:
                self._move(State.RUNNING)
            await self._actor.wait.remote()
            self.reason = "it ended without being told to"
        except RayActorError:
            self.reason = "it crashed or was killed"
        except RayError as error:
            self.reason = str(error).strip()  # with the traceback of what it raised
        ray.kill(self._actor)  # a coroutine that crashed leaves its actor behind
        self._proven_dead = await self._is_gone()
        self._move(State.DEAD)
        self.gone.set()

    async def stop(self, patience_s: float) -> None:
        """End it: let it drain, then kill it. `live` sees the end."""
        self._told_to_stop = True
        starting = self.state is State.STARTING
        self._move(State.STOPPING)
        try:
            if not starting:
                await asyncio.wait_for(self._actor.stop.remote(), patience_s)
        except (RayError, TimeoutError):
            pass  # it died first, or it had its time
        ray.kill(self._actor)

    async def _is_gone(self) -> bool:
        """Proof, not absence of news: the kernel of this node no longer has the process.

        Of another node's process only Ray's word is known, which a broken network can bring about too.
        """
        hosting = self.hosting
        if hosting is None or hosting.node_id != ray.get_runtime_context().get_node_id():
            return False
        return await asyncio.to_thread(wait_gone, hosting.pid, hosting.created_at_s, KILL_TIMEOUT_S)

    def _move(self, state: State) -> None:
        if self.state is not State.DEAD:
            self.state = state
            self._on_change()

    def _said(self, name: str) -> str:
        if self.hosting is None:
            return ""
        record = msgspec.json.decode(self.hosting.record)
        return str(record.get(name, "")) if isinstance(record, dict) else ""


def wait_gone(pid: int, created_at_s: float, timeout_s: float) -> bool:
    """Whether this very process (not a later one with its pid) has ended, waiting for it if need be. A zombie has."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created_at_s) > 0.1 or process.status() == psutil.STATUS_ZOMBIE:
            return True
        process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def _actor_options(config: ClusterConfig, kind: Kind) -> dict[str, object]:
    threads = config.worker_threads()
    options: dict[str, object] = {
        "max_restarts": 0,  # a replacement is a new incarnation, never the old one again
        "max_concurrency": CONCURRENT_METHODS,
        "num_cpus": 0,
        # Two OpenMP teams that spin on a busy machine stall each other.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}},
    }
    if kind is not Kind.ROUTER:
        return options | {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    if config.door_node_id:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(config.door_node_id, soft=False)
    return options
