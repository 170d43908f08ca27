"""However a request ends, nothing is left of it: every block of both workers is free or cached, nothing is booked or
open, and what the cluster says next is right."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from going_away import STREAMS, WAYS, HttpStream, HttpWhole, Running, running
from process_cluster import ProcessCluster
from processes import Process
from reference import Reference, random_prompt
from sse import DONE, read_events
from tiny_model import make_tiny_model
from waiting import until

from diptych.messages import Role, WorkerStats

MAX_CONTEXT = 4096  # tokens
DECODE_BLOCKS, BLOCK_TOKENS, BLOCK_BYTES = 96, 16, 8192
MAX_BODY_BYTES = 64 << 10
EOS = 2
NUM_CLIENTS = 80  # of the churn
pytestmark = pytest.mark.asyncio(loop_scope="module")
by_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", max_context=MAX_CONTEXT)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    model: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ProcessCluster]:
    """Small enough to fill: decode has few blocks, and prefill takes many steps for a long prompt."""
    async with ProcessCluster(
        model,
        valkey_url,
        tmp_path_factory.mktemp("logs"),
        worker={"max_batch_tokens": 16},
        by_role={Role.DECODE: {"kv_cache_bytes": DECODE_BLOCKS * BLOCK_BYTES}},
        router={"remote_prefill": "always", "max_body_bytes": MAX_BODY_BYTES},
    ) as cluster:
        yield cluster


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_left(cluster: ProcessCluster, reference: Reference) -> AsyncIterator[None]:
    """After every test here: all at rest, and the next answer is right."""
    yield
    await cluster.wait_quiet()
    prompt = random_prompt(50, seed=0)
    answer = await complete(cluster.http, prompt=prompt, max_tokens=8, ignore_eos=True)
    assert answer["choices"][0]["token_ids"] == reference.tokens(prompt, 8)
    await cluster.wait_quiet()


async def complete(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "max_tokens": 8, "temperature": 0, "return_token_ids": True, "return_report": True}
    answer = await client.post("/v1/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


def worker_of(cluster: ProcessCluster, role: Role) -> Process:
    (worker,) = cluster.of_role(role)
    return worker


async def stats_of(cluster: ProcessCluster, role: Role) -> WorkerStats:
    return await cluster.stats(worker_of(cluster, role))


# --- ends that nobody forces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"ignore_eos": True}, "length", id="length"),
        pytest.param({"ignore_eos": True, "max_tokens": 1}, "length", id="one token"),
        pytest.param({"logit_bias": {str(EOS): 100}, "min_tokens": 3}, "stop", id="eos"),
        pytest.param({"stop_token_ids": [68], "logit_bias": {"68": 100}, "min_tokens": 3}, "stop", id="stop token"),
        pytest.param({"stop": ["bbb"], "logit_bias": {"68": 100}, "max_tokens": 500}, "stop", id="stop string"),
        pytest.param({"stop": ["bbb"], "logit_bias": {"68": 100}, "n": 3}, "stop", id="stop string, n=3"),
    ],
)
async def test_finished(cluster: ProcessCluster, fields: dict[str, Any], reason: str, stream: bool) -> None:
    body = {"model": "tiny", "prompt": random_prompt(100, seed=1), "max_tokens": 12, "temperature": 0} | fields
    if not stream:
        answer = (await cluster.http.post("/v1/completions", json=body)).json()
        reasons = [choice["finish_reason"] for choice in answer["choices"]]
    else:
        events = await stream_events(cluster.http, body)
        reasons = [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]]
    assert reasons == [reason] * fields.get("n", 1)


async def stream_events(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        events = [event async for event in read_events(response)]
    assert events.pop() == DONE
    return events


# --- clients that go away -----------------------------------------------------------------------------------------


@by_way
async def test_left_while_queued(cluster: ProcessCluster, reference: Reference, way: type[Running]) -> None:
    """Decode's blocks are taken, so the second request waits for its reservation."""
    first_prompt, num_tokens = random_prompt(700, seed=2), 800  # long enough to look at while it lasts
    async with running(HttpStream, cluster, first_prompt, num_tokens) as first:
        await until(lambda: first.got(1), "the first request streams")
        async with running(way, cluster, random_prompt(1000, seed=3), 8) as second:

            async def queued() -> bool:
                return (await stats_of(cluster, Role.DECODE)).num_waiting == 1

            await until(queued, "the second request waits for blocks")
            await second.leave()

            async def gone() -> bool:
                return (await stats_of(cluster, Role.DECODE)).num_waiting == 0

            await until(gone, "it waits no longer")
        assert not first.task.done(), "the first request made room by ending; it must be longer"
        await first.task
        assert first.tokens == reference.tokens(first_prompt, num_tokens)


@by_way
async def test_left_in_prefill(cluster: ProcessCluster, way: type[Running]) -> None:
    """Prefill stops computing in the middle of the prompt."""
    num_tokens = 1500
    before = (await stats_of(cluster, Role.PREFILL)).prompt_tokens_computed_total

    async def computed() -> int:
        return (await stats_of(cluster, Role.PREFILL)).prompt_tokens_computed_total - before

    async def computing() -> bool:
        return await computed() > 0

    async with running(way, cluster, random_prompt(num_tokens, seed=40 + WAYS.index(way)), 8) as request:
        await until(computing, "prefill computes")
        await request.leave()
    await cluster.wait_quiet()
    assert 0 < await computed() < num_tokens


@pytest.mark.parametrize("way", STREAMS, ids=lambda way: way.__name__)
async def test_left_in_the_stream(cluster: ProcessCluster, way: type[Running]) -> None:
    before = (await stats_of(cluster, Role.DECODE)).generated_tokens_total
    max_tokens = 1000
    async with running(way, cluster, random_prompt(100, seed=5), max_tokens) as request:
        await until(lambda: request.got(5), "five tokens have come")
        await request.leave()
    await cluster.wait_quiet()
    assert (await stats_of(cluster, Role.DECODE)).generated_tokens_total - before < max_tokens - 1


async def test_left_while_it_decodes_for_a_whole_answer(cluster: ProcessCluster) -> None:
    before = (await stats_of(cluster, Role.DECODE)).generated_tokens_total

    async def decoding() -> bool:
        return (await stats_of(cluster, Role.DECODE)).generated_tokens_total > before + 5

    async with running(HttpWhole, cluster, random_prompt(100, seed=6), 1000) as request:
        await until(decoding, "decode draws tokens")
        await request.leave()
    await cluster.wait_quiet()
    assert (await stats_of(cluster, Role.DECODE)).generated_tokens_total - before < 999


@pytest.mark.parametrize("way", STREAMS, ids=lambda way: way.__name__)
async def test_left_while_kv_is_on_its_way_to_a_stopped_decode_worker(
    cluster: ProcessCluster, way: type[Running]
) -> None:
    """The first token is out, the delivery cannot be taken in, and the abort cannot either."""
    prefill, decode = worker_of(cluster, Role.PREFILL), worker_of(cluster, Role.DECODE)
    before = (await cluster.stats(prefill)).prompt_tokens_computed_total

    async def computing() -> bool:
        return (await cluster.stats(prefill)).prompt_tokens_computed_total > before

    async with running(way, cluster, random_prompt(1400, seed=50 + WAYS.index(way)), 50) as request:
        await until(computing, "prefill computes")
        decode.signal(signal.SIGSTOP)
        try:
            await until(lambda: request.got(1), "prefill's token has come")
            await request.leave()
        finally:
            decode.signal(signal.SIGCONT)
    await cluster.wait_quiet()
    assert (await stats_of(cluster, Role.DECODE)).num_running == 0


@by_way
async def test_left_while_a_stopped_prefill_worker_may_still_write(cluster: ProcessCluster, way: type[Running]) -> None:
    """Blocks that were promised stay quarantined until the prefill worker has said that nothing is in flight."""
    prefill, decode = worker_of(cluster, Role.PREFILL), worker_of(cluster, Role.DECODE)
    before = (await cluster.stats(prefill)).prompt_tokens_computed_total

    async def computing() -> bool:
        return (await cluster.stats(prefill)).prompt_tokens_computed_total > before

    async def quarantined() -> bool:
        stats = await cluster.stats(decode)
        return stats.blocks_in_flight == 0 and stats.blocks_quarantined == 1200 // BLOCK_TOKENS

    async with running(way, cluster, random_prompt(1200, seed=60 + WAYS.index(way)), 50) as request:
        await until(computing, "prefill computes")
        prefill.signal(signal.SIGSTOP)
        try:
            await request.leave()
            await until(quarantined, "decode has put the promised blocks into quarantine")
        finally:
            prefill.signal(signal.SIGCONT)
    await cluster.wait_quiet()


# --- limits of time and room --------------------------------------------------------------------------------------


async def test_deadline_ends_a_stream_with_an_error_event(cluster: ProcessCluster) -> None:
    router = await cluster.add_router(remote_prefill="always", request_deadline_ms=300)
    body = {"model": "tiny", "prompt": random_prompt(50, seed=20), "max_tokens": 1000, "ignore_eos": True}
    async with router.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        events = [event async for event in read_events(response)]
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    answer = await router.post("/v1/completions", json=body)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"


async def test_no_blocks_in_time_is_503(cluster: ProcessCluster) -> None:
    router = await cluster.add_router(remote_prefill="always", reserve_timeout_ms=100)
    async with running(HttpStream, cluster, random_prompt(700, seed=21), 700) as first:
        await until(lambda: first.got(1), "the first request streams")
        body = {"model": "tiny", "prompt": random_prompt(1000, seed=22), "max_tokens": 8}
        answer = await router.post("/v1/completions", json=body)
        assert not first.task.done(), "the first request made room by ending; it must be longer"
        await first.leave()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_capacity"
    assert int(answer.headers["retry-after"]) >= 1


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_over_the_context_is_400_with_both_numbers(cluster: ProcessCluster, path: str) -> None:
    prompt = random_prompt(MAX_CONTEXT - 10, seed=30)
    messages = [{"role": "user", "content": "x" * MAX_CONTEXT}]
    body = {"prompt": prompt} if path == "/v1/completions" else {"messages": messages}
    answer = await cluster.http.post(path, json={"model": "tiny", "max_tokens": 11, **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == ("prompt" if path == "/v1/completions" else "messages")
    assert str(MAX_CONTEXT) in error["message"]
    assert path != "/v1/completions" or str(MAX_CONTEXT + 1) in error["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(2000, 8), (1000, 1000)], ids=["prompt", "prompt + max_tokens"])
async def test_what_can_never_fit_decode_is_400_with_both_numbers(
    cluster: ProcessCluster, num_prompt: int, max_tokens: int, stream: bool
) -> None:
    body = {"model": "tiny", "prompt": random_prompt(num_prompt, seed=31), "max_tokens": max_tokens, "stream": stream}
    answer = await cluster.http.post("/v1/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert str(num_prompt + max_tokens) in error["message"]
    assert str(DECODE_BLOCKS * BLOCK_TOKENS) in error["message"]


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (TEXT, b'{"model": "tiny", "prompt": "hello', 400, "invalid_value", None),
        (TEXT, b"\xff\xfe", 400, "invalid_value", None),
        (TEXT, b"", 400, "invalid_value", None),
        (TEXT, b"[1, 2]", 400, "invalid_value", None),
        (TEXT, b"[" * 5000, 400, "invalid_value", None),
        (TEXT, {}, 400, "invalid_value", "prompt"),
        (TEXT, {"prompt": "x", "max_tokens": "many"}, 400, "invalid_value", "max_tokens"),
        (TEXT, {"prompt": "x", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        (TEXT, {"prompt": "x", "max_tokens": -1}, 400, "invalid_value", "max_tokens"),
        (TEXT, {"prompt": "x", "temperature": 2.5}, 400, "invalid_value", "temperature"),
        (TEXT, {"prompt": "x", "n": 17}, 400, "invalid_value", "n"),
        (TEXT, {"prompt": "x", "n": 0}, 400, "invalid_value", "n"),
        (TEXT, {"prompt": "x", "stop": list("abcde")}, 400, "invalid_value", "stop"),
        (TEXT, {"prompt": "x", "logit_bias": {"100000": 1}}, 400, "invalid_value", "logit_bias"),
        (TEXT, {"prompt": "x", "logprobs": 21}, 400, "invalid_value", "logprobs"),
        (TEXT, {"prompt": [5, 100_000]}, 400, "invalid_value", "prompt"),
        (TEXT, {"prompt": [5, -1]}, 400, "invalid_value", "prompt"),
        (TEXT, {"prompt": []}, 400, "invalid_value", "prompt"),
        (TEXT, {"prompt": ""}, 400, "invalid_value", "prompt"),
        (TEXT, {"prompt": [5, "x"]}, 400, "invalid_value", "prompt"),
        (TEXT, {"prompt": "x", "model": "gpt-4"}, 404, "model_not_found", "model"),
        (TEXT, {"prompt": "x" * (MAX_BODY_BYTES + 1)}, 413, "payload_too_large", None),
        (CHAT, {"messages": "hello"}, 400, "invalid_value", "messages"),
        (CHAT, {"messages": []}, 400, "invalid_value", "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "invalid_value", "messages[0].content"),
        (CHAT, {"messages": HELLO, "top_logprobs": 3}, 400, "invalid_value", "top_logprobs"),
        (CHAT, {"messages": HELLO, "stream_options": {}}, 400, "invalid_value", "stream_options"),
        (CHAT, {"messages": HELLO, "model": "gpt-4", "stream": True}, 404, "model_not_found", "model"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * MAX_BODY_BYTES}]}, 413, "payload_too_large", None),
    ],
)
async def test_refused(
    cluster: ProcessCluster, path: str, body: dict[str, Any] | bytes, status: int, code: str, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else msgspec.json.encode({"model": "tiny"} | body)
    answer = await cluster.http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


async def test_body_too_large_without_a_length(cluster: ProcessCluster) -> None:
    """Sent in chunks, so only reading it shows how large it is."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2 * MAX_BODY_BYTES // 1024):
            yield b" " * 1024

    answer = await cluster.http.post(TEXT, content=endless())
    assert answer.status_code == 413


# --- all of it at once --------------------------------------------------------------------------------------------


SEEDS = [2026, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8))]


@pytest.mark.parametrize("seed", SEEDS)
async def test_churn(cluster: ProcessCluster, reference: Reference, seed: int) -> None:
    """A crowd of random requests over both paths, four in ten of which leave at a random moment. Blocks run out."""
    rng = random.Random(seed)
    never = await cluster.add_router(remote_prefill="never")
    before = await stats_of(cluster, Role.DECODE)
    clients = [Churn.draw(rng, rng.choice((cluster.http, never))) for _ in range(NUM_CLIENTS)]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(client.run() for client in clients))
    await cluster.wait_quiet()
    after = await stats_of(cluster, Role.DECODE)
    assert after.evictions_total > before.evictions_total, "blocks never ran out; ask for more"
    num_complete = 0
    for client, tokens in zip(clients, answers, strict=True):
        expected = reference.tokens(client.prompt, client.max_tokens)
        assert tokens is None or tokens == expected[: len(tokens)], f"a wrong answer to {client}"
        assert client.leaves or tokens == expected, f"an incomplete answer to {client}"
        num_complete += tokens == expected
    assert NUM_CLIENTS // 2 <= num_complete <= NUM_CLIENTS * 9 // 10


@dataclass(frozen=True)
class Churn:
    """One client of the crowd."""

    http: httpx.AsyncClient
    prompt: list[int]
    max_tokens: int
    stream: bool
    arrives_s: float
    leaves: bool
    after_tokens: int  # of a stream
    after_s: float  # of a whole answer

    @classmethod
    def draw(cls, rng: random.Random, http: httpx.AsyncClient) -> Churn:
        length = rng.choice((3, 16, 40, 160, 500, 900)) + rng.randrange(16)
        max_tokens = rng.choice((1, 2, 17, 80))
        return cls(
            http=http,
            prompt=random_prompt(length, seed=100 + rng.randrange(NUM_CLIENTS // 2)),
            max_tokens=max_tokens,
            stream=rng.random() < 0.6,
            arrives_s=rng.uniform(0.0, 1.0),
            leaves=rng.random() < 0.4,
            after_tokens=rng.randrange(max_tokens),
            after_s=rng.uniform(0.0, 1.0),
        )

    async def run(self) -> list[int] | None:
        """The tokens that came; None if it left with nothing."""
        await asyncio.sleep(self.arrives_s)  # an arrival process, not synchronisation
        try:
            async with asyncio.timeout(self.after_s if self.leaves and not self.stream else None):
                return await self._ask()
        except TimeoutError:
            return None

    async def _ask(self) -> list[int]:
        body = {
            "model": "tiny",
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": self.stream,
        }
        tokens: list[int] = []
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            if not self.stream:
                return json.loads(await response.aread())["choices"][0]["token_ids"]  # type: ignore[no-any-return]
            async for event in read_events(response):
                assert event == DONE or "error" not in event, event
                if event != DONE:
                    tokens += [token for choice in event["choices"] for token in choice.get("token_ids", [])]
                if self.leaves and len(tokens) >= self.after_tokens:
                    break
        return tokens
