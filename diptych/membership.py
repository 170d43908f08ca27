"""Who is in the cluster: workers' records in Redis under a lease, and what a router sees of them.

    {cluster}:workers              SET of worker ids, a superset of the living
    {cluster}:worker:{worker_id}   JSON WorkerRecord with PX = lease; gone when its worker stopped renewing
    {cluster}:tombstone:{worker_id}  exists once the process is proven dead; wins over any record
    {cluster}:era                  random; another one, or none, means that Redis lost what it held

A worker id is an incarnation and never returns, so nothing here has to be swept: records and tombstones expire, and a
registering worker removes ids without a record. No SCAN, no KEYS.

Redis is not on the path of a request. Without it a `MembershipWatch` keeps its last view and says that it is degraded.
Knows nothing about placement, health beyond the lease, or who starts workers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from diptych.messages import WorkerRecord, WorkerState

log = logging.getLogger(__name__)

TOMBSTONE_TTL_MS = 24 * 3_600_000  # longer than any stopped process is likely to wake up again
RENEWALS_PER_LEASE = 5
SOCKET_TIMEOUT_S = 2.0
REDIS_ERRORS = (RedisError, OSError, asyncio.TimeoutError)

_decode_record = msgspec.json.Decoder(WorkerRecord).decode


def connect(url: str, max_connections: int = 16) -> Redis:
    """A client that fails at once when Redis is gone, and waits for a free connection instead of raising."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=SOCKET_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        protocol=2,  # answers of XREAD have another shape in 3
        retry=Retry(NoBackoff(), 0),  # the default hides a dead server for ~4 s
    )
    return Redis.from_pool(pool)


def stop_if_cancelled() -> None:
    """For loops over Redis: end a task that was cancelled while a command was being sent.

    redis-py sends under `asyncio.wait_for`, which on Python 3.11 can swallow a cancellation (python/cpython#86296);
    the task would run on and whoever cancelled it would wait for ever.

    Raises:
        asyncio.CancelledError: the current task was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def workers_key(cluster: str) -> str:
    return f"{cluster}:workers"


def worker_key(cluster: str, worker_id: str) -> str:
    return f"{cluster}:worker:{worker_id}"


def tombstone_key(cluster: str, worker_id: str) -> str:
    return f"{cluster}:tombstone:{worker_id}"


def era_key(cluster: str) -> str:
    return f"{cluster}:era"


async def tombstone(redis: Redis, cluster: str, worker_id: str) -> None:
    """Declare a worker's process dead, for ever. Only for whoever has proof: its transfer agent is
    closed (a clean exit), or its process has been reaped.

    Raises:
        RedisError: Redis cannot be reached.
    """
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(tombstone_key(cluster, worker_id), b"1", px=TOMBSTONE_TTL_MS)
        pipe.delete(worker_key(cluster, worker_id))
        pipe.srem(workers_key(cluster), worker_id)
        await pipe.execute()


async def is_tombstoned(redis: Redis, cluster: str, worker_id: str) -> bool:
    """Whether the worker's process is proven dead.

    Raises:
        RedisError: Redis cannot be reached.
    """
    return bool(await redis.exists(tombstone_key(cluster, worker_id)))


class Registration:
    """A worker's own entry, renewed in the background. Redis may come and go."""

    def __init__(
        self, redis: Redis, cluster: str, record: WorkerRecord, lease_ms: int, on_fenced: Callable[[], None]
    ) -> None:
        """
        Args:
            on_fenced: called once if this worker was declared dead; it must stop serving.
        """
        self.record = record
        self.fenced = False
        self.degraded = ""  # why renewals fail; empty: they do not
        self._redis = redis
        self._cluster = cluster
        self._lease_ms = lease_ms
        self._on_fenced = on_fenced
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, and go on renewing. Without Redis it registers as soon as there is one."""
        await self._prune()
        await self.renew()
        self._task = asyncio.create_task(self._run(), name="membership")

    async def update(self, state: WorkerState) -> None:
        """Change the state now."""
        self.record = msgspec.structs.replace(self.record, state=state)
        await self.renew()

    async def stop(self) -> None:
        """Deregister. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.delete(worker_key(self._cluster, self.record.worker_id))
                pipe.srem(workers_key(self._cluster), self.record.worker_id)
                await pipe.execute()
        except REDIS_ERRORS as error:
            log.warning("could not deregister %s, its lease will end: %r", self.record.worker_id, error)

    async def renew(self) -> None:
        """Write the record for another lease. A failure is noted in `degraded` and the next renewal tries again."""
        worker_id = self.record.worker_id
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.exists(tombstone_key(self._cluster, worker_id))
                pipe.set(era_key(self._cluster), secrets.token_hex(8), nx=True)
                pipe.set(worker_key(self._cluster, worker_id), msgspec.json.encode(self.record), px=self._lease_ms)
                pipe.sadd(workers_key(self._cluster), worker_id)
                dead, *_ = await pipe.execute()
        except REDIS_ERRORS as error:
            self.degraded = f"Redis: {error!r}"
            return
        self.degraded = ""
        if dead and not self.fenced:
            self.fenced = True
            log.error("%s was declared dead and must stop", worker_id)
            self._on_fenced()

    async def _run(self) -> None:
        while True:
            stop_if_cancelled()
            await asyncio.sleep(self._lease_ms / RENEWALS_PER_LEASE / 1_000)
            await self.renew()

    async def _prune(self) -> None:
        """Remove ids whose record has expired; one that merely lapsed adds itself again."""
        try:
            view = await _read(self._redis, self._cluster)
            if view.expired:
                await self._redis.srem(workers_key(self._cluster), *view.expired)
        except REDIS_ERRORS as error:
            log.warning("could not prune members: %r", error)


@dataclass(frozen=True, slots=True)
class Change:
    """What one look at Redis changed."""

    joined: list[WorkerRecord] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # worker ids
    changed: list[WorkerRecord] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.changed)


class MembershipWatch:
    """A router's view of the workers."""

    def __init__(
        self,
        redis: Redis,
        cluster: str,
        poll_ms: int = 250,
        lease_ms: int = 5_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            lease_ms: the workers'; for so long after Redis lost its data, absence from it means nothing.
        """
        self.workers: dict[str, WorkerRecord] = {}
        self.degraded = "not read yet"  # why the view may be old; empty: it is not
        self._redis = redis
        self._cluster = cluster
        self._poll_s = poll_ms / 1_000
        self._lease_s = lease_ms / 1_000
        self._clock = clock
        self._era: bytes | None = None
        self._trust_absence_at = 0.0

    async def poll(self) -> Change:
        """Look once. Redis being unreachable changes nothing but `degraded`."""
        try:
            view = await _read(self._redis, self._cluster, self.workers)
        except REDIS_ERRORS as error:
            self.degraded = f"Redis: {error!r}"
            return Change()
        return self._apply(view)

    async def changes(self) -> AsyncIterator[Change]:
        """Look again and again; yields what changed."""
        while True:
            if change := await self.poll():
                yield change
            stop_if_cancelled()
            await asyncio.sleep(self._poll_s)

    def _apply(self, view: _View) -> Change:
        if view.era != self._era and self._era is not None:
            log.warning("Redis lost its data; keeping the workers known before for %.1f s", self._lease_s)
            self._trust_absence_at = self._clock() + self._lease_s
        self._era = view.era or self._era
        lost_data = view.era is None or self._clock() < self._trust_absence_at
        self.degraded = "Redis lost its data; workers are registering again" if lost_data and self.workers else ""

        absent = [worker_id for worker_id in self.workers if worker_id not in view.records]
        left = [worker_id for worker_id in absent if worker_id in view.dead or not lost_data]
        joined = [record for worker_id, record in view.records.items() if worker_id not in self.workers]
        changed = [
            record
            for worker_id, record in view.records.items()
            if worker_id in self.workers and self.workers[worker_id] != record
        ]
        for worker_id in left:
            del self.workers[worker_id]
        self.workers |= view.records
        return Change(joined, left, changed)


@dataclass(frozen=True, slots=True)
class _View:
    era: bytes | None
    records: dict[str, WorkerRecord]  # of workers neither expired nor dead
    expired: list[str]
    dead: list[str]


async def _read(redis: Redis, cluster: str, known: Iterable[str] = ()) -> _View:
    """Look up all members, and `known` workers even if they are members no longer."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.get(era_key(cluster))
        pipe.smembers(workers_key(cluster))
        era, members = await pipe.execute()
    worker_ids = sorted({member.decode() for member in members}.union(known))
    if not worker_ids:
        return _View(era, {}, [], [])
    keys = [worker_key(cluster, worker_id) for worker_id in worker_ids]
    tombstones = [tombstone_key(cluster, worker_id) for worker_id in worker_ids]
    values = await redis.mget([*keys, *tombstones])
    records, expired, dead = {}, [], []
    for worker_id, value, stone in zip(worker_ids, values, values[len(worker_ids) :], strict=False):
        if stone is not None:
            dead.append(worker_id)
        elif value is None:
            expired.append(worker_id)
        else:
            try:
                records[worker_id] = _decode_record(value)
            except ValueError as error:  # no JSON, no record, or no UTF-8
                log.error("the record of %s cannot be read, perhaps of another version: %s", worker_id, error)
    return _View(era, records, expired, dead)
