"""More requests than a real cluster has places for: who waits, who overtakes, who is refused; and nothing is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx
import pytest
import pytest_asyncio
from going_away import HttpStream, running
from process_cluster import ProcessCluster
from reference import Reference, random_prompt
from tiny_model import make_tiny_model
from waiting import until

from diptych.messages import Role
from diptych.v1 import inference_pb2 as pb
from diptych.v1 import inference_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLACES, MAX_QUEUED, NUM_TOKENS = 2, 6, 8
AT_ONCE_S = 10.0  # on a busy machine; else it would wait for seconds of decode


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowded(
    valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[ProcessCluster, Reference]]:
    """Two requests may be under way, so a third one waits in the router."""
    model = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", max_context=4_096)
    async with ProcessCluster(
        model,
        valkey_url,
        tmp_path_factory.mktemp("logs"),
        by_role={Role.DECODE: {"max_running": 7, "kv_cache_bytes": 16 << 20}},
        router={"remote_prefill": "always", "max_in_flight": PLACES, "max_queued": MAX_QUEUED},
    ) as cluster:
        yield cluster, Reference(model)


async def ask(
    cluster: ProcessCluster, seed: int, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    body = {"model": "tiny", "prompt": random_prompt(40, seed), "max_tokens": NUM_TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, **fields}
    return await cluster.http.post("/v1/completions", json=body, headers=headers)


async def ask_first(cluster: ProcessCluster, seed: int) -> list[int]:
    """Over gRPC, with priority."""
    async with grpc.aio.insecure_channel(cluster.grpc_address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        sampling = pb.SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=random_prompt(40, seed)), sampling=sampling, priority=5, ttft_limit_ms=60_000
        )
        messages = inference_pb2_grpc.InferenceStub(channel).Generate(request)
        return [token async for message in messages for token in message.token_ids]


async def test_a_burst_beyond_capacity(crowded: tuple[ProcessCluster, Reference]) -> None:
    cluster, reference = crowded

    async def wait_queued(count: int) -> None:
        async def queued() -> bool:
            return bool((await cluster.health())["details"]["queued"] == count)

        await until(queued, f"{count} requests wait in the router")

    ends: list[str] = []

    def started(name: str, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: ends.append(name))
        return task

    async with (
        running(HttpStream, cluster, random_prompt(40, seed=1), 3_500) as first,
        running(HttpStream, cluster, random_prompt(40, seed=2), 3_500) as second,
    ):
        for each in (first, second):
            await until(lambda each=each: each.got(1), "all places are taken")  # type: ignore[misc]
        low = []
        for i in range(MAX_QUEUED):
            low.append(started("low", ask(cluster, 10 + i, priority=-1)))
            await wait_queued(i + 1)

        began = time.monotonic()
        refused = await ask(cluster, 20, priority=-1)
        assert refused.status_code == 503, refused.text
        assert int(refused.headers["retry-after"]) >= 1
        assert "max_queued" in refused.json()["error"]["message"]
        assert time.monotonic() - began < AT_ONCE_S

        high = started("high", ask_first(cluster, 30))
        shed = await low.pop()
        assert shed.status_code == 503
        assert int(shed.headers["retry-after"]) >= 1
        assert "higher priority" in shed.json()["error"]["message"]

        late = await ask(cluster, 21, {"x-diptych-ttft-limit-ms": "1"})  # takes nobody's place
        assert late.status_code == 503
        assert "X-Diptych-TTFT-Limit-Ms" in late.json()["error"]["message"]
        await wait_queued(MAX_QUEUED)

        for each in (low.pop(), low.pop()):
            each.cancel()
        await wait_queued(MAX_QUEUED - 2)
        metrics = await cluster.metrics()
        assert metrics.value("diptych_admission_queued", priority="low") == 3
        assert metrics.value("diptych_admission_queued", priority="high") == 1

        ends.clear()
        await first.leave()  # one place: they go one after the other
        assert await high == reference.tokens(random_prompt(40, 30), NUM_TOKENS)
        for i, answer in enumerate(await asyncio.gather(*low)):
            assert answer.status_code == 200, answer.text
            tokens = answer.json()["choices"][0]["token_ids"]
            assert tokens == reference.tokens(random_prompt(40, 10 + i), NUM_TOKENS)
        assert ends == ["high", "low", "low", "low"]

    samples = await cluster.settled_metrics()
    refusals = {name: samples.value("diptych_admission_refusals_total", reason=name) for name in REASONS}
    assert refusals == {"queue_full": 1, "shed": 1, "ttft_limit": 1, "deadline": 0}
    assert samples.value("diptych_admission_wait_seconds_count") == PLACES + 1 + len(low)


REASONS = ("queue_full", "shed", "ttft_limit", "deadline")


async def test_workers_say_how_many_they_can_decode_at_once(crowded: tuple[ProcessCluster, Reference]) -> None:
    """It is what bounds how many are placed on one of them."""
    cluster, _ = crowded
    (decode,) = cluster.of_role(Role.DECODE)
    assert (await cluster.stats(decode)).max_running == 7


async def test_a_limit_that_is_no_number_is_refused_by_its_name(crowded: tuple[ProcessCluster, Reference]) -> None:
    answer = await ask(crowded[0], 40, {"x-diptych-ttft-limit-ms": "soon"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-diptych-ttft-limit-ms"
