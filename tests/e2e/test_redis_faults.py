"""Redis absent, paused, flushed, failed over, full and read-only under a cluster that serves: requests are answered all
the while, by what was known before; the state is visible; and the index is true again soon after it heals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from process_cluster import ProcessCluster
from redis.asyncio import Redis
from redis_server import RedisServer, valkey_program
from reference import random_prompt
from scrape import scrape
from waiting import until

from diptych.membership import connect

HEALED_S = 5.0
REQUEST_S = 5.0  # prefill and decode included, on a busy machine; a command to Redis may take 2 s until it fails
BLOCKS = 6  # full ones of a prompt of 100 tokens

pytestmark = pytest.mark.slow

Fault = Callable[[RedisServer, Redis], Awaitable[Callable[[], Awaitable[Any]]]]  # injects; returns what heals


async def absent(server: RedisServer, _redis: Redis) -> Callable[[], Awaitable[Any]]:
    await asyncio.to_thread(server.stop)
    return lambda: asyncio.to_thread(server.start)


async def paused(_server: RedisServer, redis: Redis) -> Callable[[], Awaitable[Any]]:
    await redis.execute_command("CLIENT", "PAUSE", 4_000, "ALL")
    ends = time.monotonic() + 4.0

    async def wait() -> None:
        await asyncio.sleep(max(0.0, ends - time.monotonic()))

    return wait


async def full(_server: RedisServer, redis: Redis) -> Callable[[], Awaitable[Any]]:
    await redis.config_set("maxmemory", 1)
    return lambda: redis.config_set("maxmemory", 0)


async def read_only(_server: RedisServer, redis: Redis) -> Callable[[], Awaitable[Any]]:
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    return lambda: redis.execute_command("REPLICAOF", "NO", "ONE")


async def flushed(_server: RedisServer, redis: Redis) -> Callable[[], Awaitable[Any]]:
    await redis.flushall()

    async def nothing() -> None:
        """It heals by itself."""

    return nothing


@asynccontextmanager
async def running(model: Path, folder: Path) -> AsyncIterator[tuple[ProcessCluster, RedisServer, Redis]]:
    program, _ = valkey_program()
    assert program is not None
    server = RedisServer(program, folder)
    server.start()
    redis = connect(server.url)
    try:
        async with ProcessCluster(model, server.url, folder, router={"remote_prefill": "always"}) as cluster:
            yield cluster, server, redis
    finally:
        await redis.aclose()
        server.stop()


async def believed(cluster: ProcessCluster, prompt: list[int]) -> int:
    """Serve it; the tokens that were believed to be cached."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    began = time.monotonic()
    answer = await cluster.http.post("/v1/completions", json=body, headers={"x-diptych-placement": "1"})
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - began < REQUEST_S
    return int(json.loads(answer.headers["x-diptych-placement"])["predicted_cached_tokens"])


async def index(cluster: ProcessCluster) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=f"http://{cluster.front.record.admin_address}", trust_env=False) as admin:
        answer: dict[str, Any] = (await admin.get("/index")).json()
        return answer


async def test_requests_are_served_whatever_redis_does(model: Path, tmp_path: Path) -> None:
    faults: list[tuple[Fault, set[str]]] = [  # and parts of which at least one has to say so
        (full, {"publishers"}),
        (read_only, {"publishers"}),
        (paused, {"index", "membership", "publishers"}),
        (absent, {"index", "membership", "publishers"}),
        (flushed, set()),
    ]
    async with running(model, tmp_path) as (cluster, server, redis):
        known = random_prompt(100, seed=100)
        await believed(cluster, known)
        await until(lambda: holds(cluster, BLOCKS), "the index has the prompt")
        for number, (inject, parts) in enumerate(faults):
            before = min(each["blocks"] for each in (await index(cluster))["workers"].values())
            heal = await inject(server, redis)
            assert await believed(cluster, random_prompt(100, seed=101 + number)) == 0, inject.__name__
            assert await believed(cluster, known) == 16 * BLOCKS, "by the last view"
            if parts:
                await until(lambda parts=parts: degraded(cluster, parts), f"{inject.__name__} is seen")  # type: ignore[misc]
            await believed(cluster, known)
            await heal()
            healed = time.monotonic()
            await until(
                lambda before=before: holds(cluster, before + BLOCKS),  # type: ignore[misc]
                f"the index has what was served while Redis was {inject.__name__}",
                HEALED_S,
            )
            left = HEALED_S - (time.monotonic() - healed)
            await until(lambda: sound(cluster), "nothing is degraded any more", left)


async def holds(cluster: ProcessCluster, blocks: int) -> bool:
    told = await index(cluster)
    return told["degraded"] == "" and all(each["blocks"] >= blocks for each in told["workers"].values())


async def degraded(cluster: ProcessCluster, parts: set[str]) -> bool:
    """Both ways of saying it say it."""
    health, samples = await cluster.health(), await scrape(cluster.http)
    shown = any(samples.value("diptych_degraded", part=part) for part in parts)
    return shown and bool(health["details"]["degraded"])


async def sound(cluster: ProcessCluster) -> bool:
    health = await cluster.health()
    return health["details"]["degraded"] == [] and (await scrape(cluster.http)).value("diptych_degraded") == 0
