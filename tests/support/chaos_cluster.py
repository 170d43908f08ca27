"""A cluster to do harm to: finds a worker in the middle of a transfer, kills or freezes it, replaces it, and looks
whether everything comes to rest.

Does what the controller does about a dead process: a tombstone once it has been reaped, and a replacement. What clients
see is not its business.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chaos_load import DEADLINE_S
from process_cluster import HELD, ProcessCluster
from processes import Process
from redis.asyncio import Redis
from redis.exceptions import RedisError
from waiting import until

from diptych.membership import connect, tombstone
from diptych.messages import Role

BLOCK_BYTES = 8_192  # of the tiny model, 16 tokens
NUM_BLOCKS = 512  # a worker's: some requests fill it, so that blocks are soon used again
CHUNK = 16  # tokens of a prefill step: a long prompt takes many, and so does its transfer
SILENCE_MS = 1_500  # a worker sends a frame at least once a second
LEASE_MS = 3_000
SPREAD_S = 0.15  # a victim is hit at a random moment within this time after it was seen at a transfer
VICTIM_TIMEOUT_S = 90.0  # includes the start of a replacement
NOTICE_TIMEOUT_S = 15.0
REST_TIMEOUT_S = 20.0
TOMBSTONE_TIMEOUT_S = 30.0


@dataclass
class Remains:
    """What was left when nothing ran any more."""

    blocks: dict[str, int] = field(default_factory=dict)  # by worker id, the most ever seen
    others: dict[str, dict[str, int]] = field(default_factory=dict)  # bookings, requests, legs, by process
    dead: list[str] = field(default_factory=list)  # ended, and nobody had killed them

    @property
    def leaked_blocks(self) -> int:
        return sum(self.blocks.values())


class ChaosCluster:
    """Two workers of each role; seeded draws choose who is hit, and when after a transfer was seen."""

    def __init__(self, cluster: ProcessCluster, redis: Redis, seed: int) -> None:
        self.processes = cluster
        self.remains = Remains()
        self._redis = redis
        self._random = random.Random(seed)
        self._starting: set[asyncio.Task[Process]] = set()

    async def kill(self) -> None:
        """SIGKILL in the middle of a transfer. The replacement starts while requests go on."""
        victim = await self._hit(signal.SIGKILL)
        await self.processes.kill(victim)
        await self._bury(victim)
        self._starting.add(asyncio.create_task(self.processes.start_worker(victim.record.role)))

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """SIGSTOP in the middle of a transfer; entered when the router has noticed. SIGCONT at the end."""
        victim = await self._hit(signal.SIGSTOP)
        name = f"{victim.record.role}_workers"
        left = len(self.processes.of_role(victim.record.role)) - 1

        async def noticed() -> bool:
            return bool((await self.processes.health())["details"][name] <= left)

        try:
            await until(noticed, f"the router notices that {victim.record.worker_id} is frozen", NOTICE_TIMEOUT_S)
            yield
        finally:
            victim.signal(signal.SIGCONT)
        await self.processes.wait_healthy()

    async def rest(self) -> None:
        """When no client asks any more: wait for replacements and for rest, and note what remains."""
        await self._started(asyncio.ALL_COMPLETED)
        cluster = self.processes
        for worker in [worker for worker in cluster.workers if worker.process.returncode is not None]:
            self.remains.dead.append(worker.record.worker_id)
            cluster.workers.remove(worker)
            await self._bury(worker)
            await cluster.start_worker(worker.record.role)
        await cluster.wait_healthy()
        try:
            await cluster.wait_quiet(REST_TIMEOUT_S)
        except AssertionError as noise:
            print(noise, file=sys.stderr)
            self._note(await cluster.leftovers())

    async def close(self) -> None:
        await self._started(asyncio.ALL_COMPLETED)

    async def _bury(self, worker: Process) -> None:
        """A tombstone, as the controller sets it: again and again while Redis does not answer."""

        async def buried() -> bool:
            try:
                await tombstone(self._redis, self.processes.name, worker.record.worker_id)
            except RedisError as error:
                print(f"no tombstone yet: {error!r}", file=sys.stderr)
                return False
            return True

        await until(buried, f"a tombstone for {worker.record.worker_id}", TOMBSTONE_TIMEOUT_S)

    def _note(self, left: dict[str, dict[str, int]]) -> None:
        for name, held in left.items():
            num_blocks = sum(abs(held.pop(state, 0)) for state in (*HELD, "blocks_lost"))
            if num_blocks:
                self.remains.blocks[name] = max(num_blocks, self.remains.blocks.get(name, 0))
            if held:
                self.remains.others[name] = held

    async def _hit(self, number: signal.Signals) -> Process:
        """Send it to somebody who was at a transfer a moment ago and has a colleague."""
        victim = await self._victim(self._random.choice(list(Role)))
        await asyncio.sleep(self._random.uniform(0.0, SPREAD_S))  # the random moment
        victim.signal(number)
        return victim

    async def _victim(self, role: Role) -> Process:
        found: list[Process] = []

        async def someone() -> bool:
            await self._started(None)
            workers = self.processes.of_role(role)
            if len(workers) < 2:
                return False
            for worker in self._random.sample(workers, len(workers)):
                stats = await self.processes.stats(worker)
                if stats.blocks_in_flight if role is Role.DECODE else stats.num_running + stats.num_held:
                    found.append(worker)
                    return True
            return False

        await until(someone, f"a {role} worker with a colleague is at a transfer", VICTIM_TIMEOUT_S)
        return found[0]

    async def _started(self, when: str | None) -> None:
        """Collect the replacements that are there; wait for all of them if `when` says so."""
        if when is not None and self._starting:
            await asyncio.wait(self._starting, return_when=when)
        for task in [task for task in self._starting if task.done()]:
            self._starting.remove(task)
            task.result()


@asynccontextmanager
async def chaos_cluster(model: Path, redis_url: str, logs: Path, seed: int) -> AsyncIterator[ChaosCluster]:
    """Two prefill and two decode workers with little memory, and a router that gives up on the silent quickly.

    Args:
        logs: an existing folder.

    Raises:
        AssertionError: a process logged an accident, or did not stop when asked to.
    """
    redis = connect(redis_url)
    router = {
        "remote_prefill": "prefer",
        "silence_ms": SILENCE_MS,
        "lease_ms": LEASE_MS,
        "request_deadline_ms": int(DEADLINE_S * 1e3),
    }
    worker = {"kv_cache_bytes": NUM_BLOCKS * BLOCK_BYTES, "lease_ms": LEASE_MS}
    by_role = {Role.PREFILL: {"max_batch_tokens": CHUNK}}
    try:
        async with ProcessCluster(model, redis_url, logs, 2, 2, worker, by_role, router) as processes:
            chaos = ChaosCluster(processes, redis, seed)
            try:
                yield chaos
            finally:
                await chaos.close()
    finally:
        await redis.aclose()
