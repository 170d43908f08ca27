"""Where a running router sends prompts, with two prefill workers to choose from."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from process_cluster import ProcessCluster
from reference import random_prompt

from diptych.messages import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(model: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessCluster]:
    logs = tmp_path_factory.mktemp("logs")
    async with ProcessCluster(model, valkey_url, logs, prefill=2, router={"remote_prefill": "prefer"}) as cluster:
        yield cluster


async def place(client: httpx.AsyncClient, prompt: list[int]) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    answer = await client.post("/v1/completions", json=body, headers={"x-diptych-placement": "1"})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = json.loads(answer.headers["x-diptych-placement"])
    return told


def prefill_ids(cluster: ProcessCluster) -> set[str]:
    return {worker.record.worker_id for worker in cluster.of_role(Role.PREFILL)}


async def test_a_burst_of_cold_prompts_uses_all_prefill_workers(pool: ProcessCluster) -> None:
    told = await asyncio.gather(*(place(pool.http, random_prompt(200, seed=100 + i)) for i in range(16)))
    counts = Counter(each["prefill_worker"] for each in told)
    assert set(counts) == prefill_ids(pool)
    assert min(counts.values()) >= 4


async def test_a_known_prefix_goes_back_to_who_holds_it(pool: ProcessCluster) -> None:
    shared = random_prompt(160, seed=200)
    first = await place(pool.http, shared)
    for i in range(4):
        again = await place(pool.http, shared + random_prompt(10, seed=201 + i))
        assert again["prefill_worker"] == first["prefill_worker"]
        assert (again["predicted_cached_tokens"], again["cached_tokens"]) == (160, 160)


async def test_a_burst_on_one_prefix_is_believed_before_the_worker_has_said_so(pool: ProcessCluster) -> None:
    """Speculative entries: three are placed while the first is computed. The second may go to the idle worker."""
    prompt = random_prompt(300, seed=300)
    told = await asyncio.gather(*(place(pool.http, prompt) for _ in range(4)))
    assert sorted(each["predicted_cached_tokens"] for each in told)[2:] == [288] * 2


async def test_a_router_with_another_policy_places_by_it(pool: ProcessCluster) -> None:
    blind = await pool.add_router(policy="round-robin")
    said = (await pool.health(blind))["details"]
    assert (said["policy"], said["remote_prefill"]) == ("round-robin", "prefer")
    prompt = random_prompt(64, seed=400)
    told = [await place(blind, prompt) for _ in range(6)]
    assert Counter(each["prefill_worker"] for each in told) == dict.fromkeys(prefill_ids(pool), 3)


async def test_a_router_that_may_not_use_them_leaves_prefill_workers_alone(pool: ProcessCluster) -> None:
    alone = await pool.add_router(remote_prefill="never")
    told = await place(alone, random_prompt(64, seed=500))
    assert (told["prefill_worker"], told["reason"]) == (None, "configured")
    metrics = await pool.metrics(alone)
    assert metrics.value("diptych_fallbacks_total", reason="configured") == 1


async def test_without_prefill_workers_decode_goes_on_alone(pool: ProcessCluster) -> None:
    for worker in pool.of_role(Role.PREFILL):
        await pool.kill(worker)
    told = await place(pool.http, random_prompt(64, seed=600))
    assert told["prefill_worker"] is None
    assert told["reason"] in ("no_prefill_worker", "transfer_suspect")
