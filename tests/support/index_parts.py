"""Publisher, Redis and reader put together for a test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from diptych.engine.interface import CacheEvent
from kv_transfer.event_log import EventLog
from kv_transfer.publisher import IndexPublisher
from kv_transfer.schema import index_keys
from router.index_reader import IndexReader
from router.prefix_index import PrefixIndex


def some_hashes(count: int) -> tuple[bytes, ...]:
    return tuple(os.urandom(16) for _ in range(count))


class Worker:
    """A cache, which is the truth, and its publisher."""

    def __init__(self, redis: Redis, cluster: str, worker_id: str, log: EventLog | None = None) -> None:
        self.worker_id = worker_id
        self.held: set[bytes] = set()
        self.log = log or EventLog()
        self.publisher = IndexPublisher(redis, cluster, worker_id, self.log)

    def store(self, *hashes: bytes) -> None:
        self.held |= set(hashes)
        self.publisher.publish(CacheEvent(stored=hashes))

    def remove(self, *hashes: bytes) -> None:
        self.held -= set(hashes)
        self.publisher.publish(CacheEvent(removed=hashes))

    def clear(self) -> None:
        self.held.clear()
        self.publisher.publish(CacheEvent(cleared=True))


class Replica:
    """A router's index and its reader."""

    def __init__(self, redis: Redis, cluster: str, *workers: Worker) -> None:
        self.index = PrefixIndex()
        self.reader = IndexReader(redis, cluster, self.index)
        self.workers = workers
        self.reader.set_workers(worker.worker_id for worker in workers)

    def matches(self, *hashes: bytes) -> dict[str, int]:
        return self.index.matches(hashes, now=0.0)

    @property
    def agrees(self) -> bool:
        """It believes exactly what its workers hold."""
        return all(
            set(self.index.stored(worker.worker_id).tolist()) == set(index_keys(worker.held).tolist())
            for worker in self.workers
        )


@asynccontextmanager
async def running(*parts: Worker | Replica) -> AsyncIterator[None]:
    """Run publishers and readers; none of them may have failed by itself."""
    work = [part.publisher.run() if isinstance(part, Worker) else part.reader.run() for part in parts]
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is awaited is in another task, and in Redis)
            await asyncio.sleep(0.005)
