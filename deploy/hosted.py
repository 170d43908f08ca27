"""One process of the cluster as the controller holds it: its Ray actor, its state, and the proof of its death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from deploy.actors import ProcessHost
from deploy.cluster_config import ClusterConfig
from deploy.node_hand import prove_gone
from deploy.placing import Placed
from deploy.process_config import process_config
from deploy.reconcile import Kind, State
from deploy.saved_state import SavedProcess
from deploy.scheduling import actor_options, give_back
from deploy.status import Hosting

STOP_SLACK_S = 5.0  # after draining: the last frames, and closing what is open
KILL_TIMEOUT_S = 10.0  # from SIGKILL to the end of a process; longer only when the kernel holds it
CALL_S = 5.0  # one look at a process lasts so long at most
UNAVAILABLE_RETRY_S = 0.5


class Hosted:
    """Its state only moves forward: starting, running, stopping, dead."""

    def __init__(self, config: ClusterConfig, saved: SavedProcess, on_change: Callable[[], None]) -> None:
        self.id, self.kind, self.slot = saved.id, saved.kind, saved.slot
        self.log_path = f"{config.log_folder}/{self.id}.log"
        self.hosting = saved.hosting
        self.record = saved.record
        self.reason = ""  # why it ended, when nobody told it to
        self.retired = False  # it ended well, by its own decision: it asked to be replaced
        self.told_to_stop = saved.told_to_stop
        self.proven_dead = False
        self.gone = asyncio.Event()
        self.state = State.STARTING
        if bytes(saved.record) != b"null":
            self.state = State.RUNNING
        if saved.told_to_stop:
            self.state = State.STOPPING
        self._config = config
        self._saved = saved
        self._on_change = on_change
        self._actor: Any = None
        self._reached = asyncio.Event()  # its actor is known, or there is none any more

    @property
    def order(self) -> int:
        return self._saved.order

    @property
    def worker_id(self) -> str:
        """The incarnation in membership; empty for a router, and before it was ready."""
        return self.said("worker_id")

    @property
    def crashed(self) -> bool:
        return self.state is State.DEAD and not self.told_to_stop and not self.retired

    @property
    def placed(self) -> Placed:
        booked = {} if self.kind is Kind.ROUTER else self._config.pool(self.kind).booked
        return Placed(self.kind, self.hosting.node_id if self.hosting else self._saved.node_id, booked)

    @property
    def record_fields(self) -> dict[str, Any]:
        """What the process said about itself; nothing before it was ready."""
        record = msgspec.json.decode(self.record)
        return record if isinstance(record, dict) else {}

    def said(self, name: str) -> str:
        """A text of that."""
        return str(self.record_fields.get(name, ""))

    def saved(self) -> SavedProcess:
        """What another controller has to know to take it over."""
        return msgspec.structs.replace(
            self._saved, told_to_stop=self.told_to_stop, hosting=self.hosting, record=self.record
        )

    async def live(self, entry_point: str) -> None:
        """Follow its life from start, or from where another controller left it, to the proven end."""
        try:
            try:
                await asyncio.to_thread(self._reach)
            finally:
                self._reached.set()
            await self._begin(entry_point)
            while not await self._ask("wait", CALL_S):
                pass
            self.reason, self.retired = "it ended without being told to", True
        except RayActorError:
            self.reason = self.reason or "it crashed or was killed"
        except ValueError:
            self.reason = self.reason or "it died while no controller was there to see it"
        except (RayError, TimeoutError) as error:
            self.reason = self.reason or str(error).strip()  # with the traceback of what it raised
        if self._actor is not None:
            ray.kill(self._actor)  # a coroutine that crashed leaves its actor behind
        self.proven_dead = self.hosting is not None and await prove_gone(self.hosting, KILL_TIMEOUT_S)
        await asyncio.to_thread(give_back, self.id)
        self._move(State.DEAD)
        self.gone.set()

    async def stop(self, patience_s: float) -> None:
        """End it: let it drain, then kill it. `live` sees the end."""
        starting, self.told_to_stop = self.state is State.STARTING, True
        self._move(State.STOPPING)
        if not starting:
            try:
                async with asyncio.timeout(patience_s):
                    await self._reached.wait()
                    await self._ask("stop")
                    await self.gone.wait()
                return
            except (RayError, TimeoutError):
                pass  # it died first, or it had its time
        await self.kill("it did not end in time")

    async def kill(self, reason: str) -> None:
        """SIGKILL, which ends even a stopped process. `live` sees the end."""
        self.reason = self.reason or reason
        await self._reached.wait()
        if self.hosting is not None:
            await prove_gone(self.hosting, KILL_TIMEOUT_S, kill=True)
        if self._actor is not None:
            ray.kill(self._actor)

    def _reach(self) -> None:
        """Find its actor, or create it.

        Raises:
            ValueError: it was there when its last controller was, and is no more.
        """
        if self._saved.hosting is not None:
            self._actor = ray.get_actor(self.id)
            return
        try:
            self._actor = ray.get_actor(self.id)  # the last controller may have been killed right after creating it
        except ValueError:
            give_back(self.id)  # likewise
            options = actor_options(self._config, self.kind, self.id, self._saved.node_id)
            limits = self._config.limits
            arguments = (self.log_path, limits.orphan_timeout_s, limits.drain_timeout_s + STOP_SLACK_S)
            self._actor = ray.remote(ProcessHost).options(**options).remote(*arguments)

    async def _begin(self, entry_point: str) -> None:
        """Start it and wait until it is ready; a process that is there already only answers once more."""
        config = msgspec.json.encode(process_config(self._config, self.kind, self.slot))
        hosting = await self._ask("start", entry_point, str(self.kind), config)
        self.hosting = msgspec.json.decode(hosting, type=Hosting)
        self._on_change()
        deaf_s = CALL_S + self._config.limits.replace_after_s
        try:
            while not (record := await asyncio.wait_for(self._ask("ready", CALL_S), deaf_s)):
                pass
        except TimeoutError:
            await self.kill(f"it did not answer for {deaf_s:g} s while it started")
            raise
        self.record = msgspec.Raw(record)
        if self.state is State.STARTING:
            self._move(State.RUNNING)

    async def _ask(self, method: str, *arguments: object) -> Any:
        """Call its actor, again while Ray cannot reach it for the moment: that says nothing about its life.

        Raises:
            RayError: the actor has died, or what it raised.
        """
        while True:
            try:
                return await getattr(self._actor, method).remote(*arguments)
            except ActorUnavailableError:
                await asyncio.sleep(UNAVAILABLE_RETRY_S)

    def _move(self, state: State) -> None:
        if self.state is not State.DEAD:
            self.state = state
            self._on_change()
