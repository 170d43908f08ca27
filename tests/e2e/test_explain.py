"""Why a request went where it went, asked of a running router: the header, the admin door, the metrics."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from documented_metrics import documented, exported
from process_cluster import ProcessCluster
from processes import stop
from redis_contents import contents, leaks
from reference import random_prompt
from scrape import scrape
from waiting import until

from diptych.membership import connect
from diptych.messages import Role, RouterRecord
from router.keys import key_entry, new_key

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(cluster: ProcessCluster) -> AsyncIterator[httpx.AsyncClient]:
    record: RouterRecord = cluster.front.record
    async with httpx.AsyncClient(base_url=f"http://{record.admin_address}", trust_env=False) as client:
        yield client


async def complete(
    cluster: ProcessCluster, prompt: list[int], http: httpx.AsyncClient | None = None, **headers: str
) -> httpx.Response:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    answer = await (http or cluster.http).post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def explain(admin: httpx.AsyncClient, request_id: str) -> dict[str, Any]:
    """When the request is over."""
    explanation: dict[str, Any] = {}

    async def ended() -> bool:
        nonlocal explanation
        answer = await admin.get(f"/explain/{request_id}")
        assert answer.status_code == 200, answer.text
        explanation = answer.json()
        return explanation["outcome"] is not None

    await until(ended, "the request's outcome is known")
    return explanation


async def test_a_request_is_explained_with_what_was_believed_and_what_was_true(
    cluster: ProcessCluster, admin: httpx.AsyncClient
) -> None:
    prompt = random_prompt(100, seed=1)
    cold = await complete(cluster, prompt, **{"x-diptych-placement": "1", "x-request-id": "the-cold-one"})
    told = json.loads(cold.headers["x-diptych-placement"])
    workers = {role: [worker.record.worker_id for worker in cluster.of_role(role)] for role in Role}
    assert [told["prefill_worker"]] == workers[Role.PREFILL]
    assert [told["decode_worker"]] == workers[Role.DECODE]
    assert (told["predicted_cached_tokens"], told["cached_tokens"]) == (0, 0)

    by_answer = await explain(admin, cold.json()["id"])
    assert by_answer["request_id"] == told["request_id"]
    assert await explain(admin, "the-cold-one") == by_answer
    (decision,) = by_answer["decisions"]
    chosen = decision["chosen"]
    assert (chosen["prefill"], chosen["decode"]) == (told["prefill_worker"], told["decode_worker"])
    assert chosen["ttft_ms"] == pytest.approx(told["expected_ttft_ms"], abs=1e-3)
    terms = ("queue_ms", "prefill_ms", "exposed_transfer_ms", "disturbance_ms", "decode_ms")
    assert sum(chosen[name] for name in terms) == pytest.approx(chosen["cost_ms"])
    assert (decision["policy"], decision["remote_prefill"], decision["reason"]) == ("min-ttft", "always", "remote")
    outcome = by_answer["outcome"]
    assert (outcome["outcome"], outcome["cached_tokens"], outcome["completion_tokens"]) == ("ok", 0, 4)
    assert outcome["ttft_ms"] > 0
    assert outcome["prefill_ms"] > 0

    warm = await complete(cluster, prompt, **{"x-diptych-placement": "1"})
    told = json.loads(warm.headers["x-diptych-placement"])
    assert (told["predicted_cached_tokens"], told["cached_tokens"]) == (96, 96)
    outcome = (await explain(admin, warm.json()["id"]))["outcome"]
    assert (outcome["predicted_cached_tokens"], outcome["cached_tokens"]) == (96, 96)


async def test_nobody_is_told_who_did_not_ask(cluster: ProcessCluster) -> None:
    assert "x-diptych-placement" not in (await complete(cluster, random_prompt(40, seed=2))).headers


async def test_no_prompt_is_shown(cluster: ProcessCluster, admin: httpx.AsyncClient) -> None:
    prompt = random_prompt(40, seed=3)
    answer = await complete(cluster, prompt)
    text = json.dumps(await explain(admin, answer.json()["id"]))
    assert ", ".join(map(str, prompt[:4])) not in text


async def test_the_admin_door_lists_workers_and_the_state_of_the_index(
    cluster: ProcessCluster, admin: httpx.AsyncClient
) -> None:
    listed = (await admin.get("/workers")).json()["workers"]
    assert {each["worker"]["worker_id"] for each in listed} == {each.record.worker_id for each in cluster.workers}
    assert all(each["placeable"] for each in listed)
    await complete(cluster, random_prompt(100, seed=4))

    async def caught_up() -> bool:
        index = (await admin.get("/index")).json()
        return not index["degraded"] and all(each["blocks"] >= 6 for each in index["workers"].values())

    await until(caught_up, "the index has the prompt on both workers")
    missing = await admin.get("/explain/nobody-asked-this")
    assert missing.status_code == 404


async def test_predictions_are_counted_against_the_truth(cluster: ProcessCluster) -> None:
    before = await cluster.settled_metrics()
    prompt = random_prompt(100, seed=5)
    await complete(cluster, prompt)
    await complete(cluster, prompt)
    after = await cluster.settled_metrics()

    def rose(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert rose("diptych_placements_total") == 2
    assert rose("diptych_matched_tokens_total") == rose("diptych_predicted_cached_tokens_total") == 96
    assert rose("vllm:prefix_cache_hits_total") == rose("diptych_prefill_tokens_avoided_total") == 96
    assert rose("diptych_stale_hits_total") == 0
    assert rose("diptych_placement_seconds_count") == 2
    assert rose("diptych_predicted_ttft_error_seconds_count") == 2
    assert after.value("diptych_load_balance", role="prefill") == 1.0
    assert after.value("diptych_crossover_tokens") >= 1


async def test_a_router_that_starts_later_has_the_whole_index_when_its_doors_open(
    cluster: ProcessCluster, admin: httpx.AsyncClient
) -> None:
    prompt = random_prompt(100, seed=6)
    await complete(cluster, prompt)

    async def both_hold_it() -> bool:
        index = (await admin.get("/index")).json()
        return index["degraded"] == "" and all(each["blocks"] >= 6 for each in index["workers"].values())

    await until(both_hold_it, "the first router has the prompt on both workers")
    known = (await admin.get("/index")).json()["workers"]
    late = await cluster.start_router()
    async with httpx.AsyncClient(base_url=f"http://{late.record.admin_address}", trust_env=False) as late_admin:
        index = (await late_admin.get("/index")).json()
    assert index["degraded"] == ""
    assert index["workers"].keys() == known.keys()
    assert all(index["workers"][name]["blocks"] >= each["blocks"] for name, each in known.items())
    await cluster.wait_healthy(cluster.client(late))
    first = await complete(cluster, prompt, cluster.client(late), **{"x-diptych-placement": "1"})
    told = json.loads(first.headers["x-diptych-placement"])
    assert (told["predicted_cached_tokens"], told["cached_tokens"]) == (96, 96)


async def test_a_router_without_redis_opens_its_doors_and_says_so(cluster: ProcessCluster) -> None:
    began = time.monotonic()
    alone = await cluster.start_router(redis_url="redis://127.0.0.1:1/0")
    http = cluster.client(alone)
    assert time.monotonic() - began < 45.0  # most of it Python's, on a busy machine
    health = await cluster.health(http)
    assert any("Redis" in reason for reason in health["details"]["degraded"])
    assert (await scrape(http)).value("diptych_degraded", part="membership") == 1
    cluster.routers.remove(alone)
    assert await stop(alone) == 0


async def test_tenants_share_no_block_and_redis_learns_no_prompt(cluster: ProcessCluster, tmp_path: Path) -> None:
    keys = {tenant: new_key() for tenant in ("acme", "bolt")}
    file = tmp_path / "keys.toml"
    file.write_text("".join(key_entry(tenant, key) for tenant, key in keys.items()))
    guarded = await cluster.start_router(api_keys_file=str(file))
    http = cluster.client(guarded)
    await cluster.wait_healthy(http)
    prompt, text = random_prompt(100, seed=7), "Mind the violet giraffe of Zanzibar, please."

    async def cached(tenant: str, prompt: list[int] | str, **more: Any) -> int:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **more}
        answer = await http.post("/v1/completions", json=body, headers={"authorization": f"Bearer {keys[tenant]}"})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert await cached("acme", prompt) == 0
    assert await cached("acme", prompt) == 96
    assert await cached("bolt", prompt) == 0, "another tenant's blocks"
    assert await cached("bolt", prompt, cache_salt="acme") == 0, "a salt does not lead into another tenant's scope"
    assert await cached("acme", prompt, cache_salt="x") == 0, "and only narrows one's own"
    assert await cached("acme", prompt) == 96
    await cached("acme", text)
    await complete(cluster, prompt)
    await cluster.wait_quiet()

    redis = connect(cluster.redis_url)
    held = await contents(redis)
    assert any(b":index:" in each for each in held), "the index was written"
    assert leaks(held, prompt, [text, "violet giraffe", *keys.values()]) == []
    assert leaks([*held, str(prompt).encode()], prompt), "it would have been found"
    await redis.aclose()
    cluster.routers.remove(guarded)
    assert await stop(guarded) == 0


async def test_every_metric_is_documented_and_every_documented_metric_is_there(cluster: ProcessCluster) -> None:
    found = exported((await cluster.http.get("/metrics")).text)
    assert sorted(found - documented()) == [], "not in docs/metrics.md"
    assert sorted(documented() - found) == [], "in docs/metrics.md and not exported"
