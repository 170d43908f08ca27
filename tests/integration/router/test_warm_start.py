"""A router that starts again places its first prompt by the whole index, filled by real publishers in a real Redis."""

from __future__ import annotations

import asyncio

from index_parts import Replica, Worker, running, some_hashes
from placement_views import PROMPT, decode, prefill
from redis.asyncio import Redis

from kv_transfer.event_log import EventLog
from router.placement import place

WAIT_S = 5.0  # as `router.process` waits before it opens its doors
BLOCK = 16


async def test_the_first_placement_after_a_restart_sees_the_whole_index(redis: Redis, cluster: str) -> None:
    workers = [Worker(redis, cluster, f"p{number}", EventLog(snapshot_every=3)) for number in range(4)]
    prompt = some_hashes(10)
    async with running(*workers):
        for number, worker in enumerate(workers):
            for _ in range(5):  # snapshots, and a tail behind them
                worker.store(*some_hashes(300))
                await worker.publisher.flush()
            worker.store(*prompt[: 3 * number])
        await asyncio.gather(*(worker.publisher.flush() for worker in workers))

    started = Replica(redis, cluster, *workers)  # a new process: nothing is left of the old index
    assert started.matches(*prompt) == {}
    async with running(started):
        assert await started.reader.caught_up(WAIT_S)
        matches = started.matches(*prompt)
        assert started.agrees, "nothing is missing when it says that it has caught up"
    assert matches == {"p1": 3, "p2": 6, "p3": 9}
    views = [*(prefill(worker.worker_id) for worker in workers), decode("d")]
    held = {worker_id: BLOCK * blocks for worker_id, blocks in matches.items()}
    placement = place(PROMPT, views, "always", 0, matches=held)
    assert (placement.prefill_id, placement.predicted_cached) == ("p3", 9 * BLOCK)
