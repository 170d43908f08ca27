"""The transfer is proven, not assumed: counters show what moved, decode computed nothing that was transferred, and the
first token, drawn at prefill, is handed over and counted once, whatever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from process_cluster import ProcessCluster
from reference import BLOCK, Reference, random_prompt
from scrape import Samples
from sse import DONE, read_events
from waiting import until

from diptych.messages import Role, WorkerStats

EOS = 2
CHUNK = 64  # `max_batch_tokens` of the tests' workers
FORCED = 70  # a plain token, forced with logit_bias
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def never(cluster: ProcessCluster) -> AsyncIterator[httpx.AsyncClient]:
    """A second router on the same workers: here decode computes every prompt itself."""
    yield await cluster.add_router(remote_prefill="never")


async def complete(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "max_tokens": 8, "temperature": 0, "return_token_ids": True, "return_report": True}
    answer = await client.post("/v1/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


async def stats_of(cluster: ProcessCluster, role: Role) -> WorkerStats:
    (worker,) = cluster.of_role(role)
    return await cluster.stats(worker)


def block_bytes(cluster: ProcessCluster) -> int:
    size: int = cluster.of_role(Role.DECODE)[0].record.block_bytes
    return size


def num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK)


class Rise:
    """How much the counters of /metrics rose since the last time it was asked for."""

    def __init__(self, cluster: ProcessCluster, before: Samples) -> None:
        self._cluster, self._before = cluster, before

    async def measured(self) -> Callable[..., float]:
        before, after = self._before, await self._cluster.settled_metrics()
        self._before = after
        return lambda name, **labels: after.value(name, **labels) - before.value(name, **labels)


@pytest_asyncio.fixture(loop_scope="module")
async def rise(cluster: ProcessCluster) -> Rise:
    return Rise(cluster, await cluster.settled_metrics())


async def test_the_pair_has_measured_its_connection(cluster: ProcessCluster) -> None:
    await complete(cluster.http, prompt=[5] * 40)
    (decode,) = cluster.of_role(Role.DECODE)

    async def measured() -> bool:
        return decode.record.worker_id in (await stats_of(cluster, Role.PREFILL)).links

    await until(measured, "prefill has measured its link to decode")
    link = (await stats_of(cluster, Role.PREFILL)).links[decode.record.worker_id]
    assert 1e6 < link.bytes_per_s < 1e12
    assert 0 <= link.latency_ms < 1_000


@pytest.mark.parametrize("length", [5, 2 * BLOCK, 2 * BLOCK + 1, 150])
async def test_counters_show_what_moved(cluster: ProcessCluster, rise: Rise, length: int) -> None:
    moved = num_blocks(length) * block_bytes(cluster)
    answer = await complete(cluster.http, prompt=random_prompt(length, seed=length), ignore_eos=True)

    report = answer["diptych"]
    sources = report["prompt_tokens"]
    assert sources[report["prefill_worker"]] == {"computed": length, "local_cache": 0, "transferred": 0}
    assert sources[report["decode_worker"]] == {"computed": 0, "local_cache": 0, "transferred": length}
    assert report["transfer_bytes"] == moved
    assert report["transfer_ms"] > 0
    assert report["exposed_ms"] > 0

    rose = await rise.measured()
    prompt_tokens = "diptych_prompt_tokens_total"
    assert rose(prompt_tokens, role="prefill", source="computed") == length
    assert rose(prompt_tokens, role="decode", source="transferred") == length
    assert rose(prompt_tokens, role="decode", source="computed") == 0
    assert rose(prompt_tokens, role="prefill", source="transferred") == 0
    assert rose("diptych_transfer_bytes_total", role="prefill") == moved
    assert rose("diptych_transfers_total", role="prefill") == 1
    assert rose("diptych_transfers_failed_total") == 0
    assert rose("diptych_transfers_refused_total") == 0
    assert rose("diptych_worker_generated_tokens_total", role="prefill") == 1
    assert rose("diptych_worker_generated_tokens_total", role="decode") == 7
    assert rose("diptych_requests_placed_total", path="remote") == 1


async def test_the_first_chunks_are_written_while_the_others_are_computed(cluster: ProcessCluster) -> None:
    """So more time is spent on transfers than shows, unless a busy machine holds decode up when it is told."""
    seen = []
    for attempt in range(10):
        answer = await complete(cluster.http, prompt=random_prompt(5 * CHUNK, seed=900 + attempt), ignore_eos=True)
        report = answer["diptych"]
        seen.append((report["transfer_ms"], report["exposed_ms"]))
        if report["transfer_ms"] > report["exposed_ms"]:
            return
    pytest.fail(f"transfer and what of it shows, in ms: {seen}")


async def test_only_what_decode_lacks_is_moved(cluster: ProcessCluster, rise: Rise) -> None:
    shared, more = random_prompt(3 * BLOCK, seed=1), random_prompt(2 * BLOCK + 3, seed=2)
    await complete(cluster.http, prompt=shared, ignore_eos=True)
    answer = await complete(cluster.http, prompt=shared + more, ignore_eos=True)

    report = answer["diptych"]
    sources = report["prompt_tokens"]
    assert sources[report["prefill_worker"]] == {"computed": len(more), "local_cache": len(shared), "transferred": 0}
    assert sources[report["decode_worker"]] == {"computed": 0, "local_cache": len(shared), "transferred": len(more)}
    assert report["transfer_bytes"] == num_blocks(len(more)) * block_bytes(cluster)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(shared)
    rose = await rise.measured()
    assert rose("diptych_transfer_bytes_total", role="prefill") == 6 * block_bytes(cluster)


async def test_first_token_is_handed_over_and_counted_once(cluster: ProcessCluster, reference: Reference) -> None:
    prompt = random_prompt(40, seed=3)
    expected = reference.tokens(prompt, 7)
    whole = await complete(cluster.http, prompt=prompt, max_tokens=7, ignore_eos=True, cache_salt="whole")
    assert whole["choices"][0]["token_ids"] == expected
    assert whole["usage"]["completion_tokens"] == 7

    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": 7,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with cluster.http.stream("POST", "/v1/completions", json=body) as response:
        events = [event async for event in read_events(response)]
    assert events.pop() == DONE
    assert events.pop()["usage"]["completion_tokens"] == 7
    choices = [event["choices"][0] for event in events]
    assert [token for choice in choices for token in choice.get("token_ids", [])] == expected
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]


@pytest.mark.parametrize(
    ("fields", "token"),
    [
        pytest.param({"logit_bias": {str(EOS): 100}}, EOS, id="eos"),
        pytest.param({"logit_bias": {str(FORCED): 100}, "stop_token_ids": [FORCED]}, FORCED, id="stop token"),
    ],
)
async def test_first_token_ends_the_choice(
    cluster: ProcessCluster, rise: Rise, fields: dict[str, Any], token: int
) -> None:
    answer = await complete(cluster.http, prompt=random_prompt(40, seed=4), **fields)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["text"], choice["token_ids"]) == ("stop", "", [token])
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["diptych"]["transfer_bytes"] == 0
    await cluster.wait_quiet()
    rose = await rise.measured()
    assert rose("diptych_worker_generated_tokens_total", role="prefill") == 1
    assert rose("diptych_worker_generated_tokens_total", role="decode") == 0
    assert rose("diptych_prompt_tokens_total", role="decode") == 0


async def test_second_token_ends_the_choice(cluster: ProcessCluster) -> None:
    """The first may not be a stop token (min_tokens), so decode gets to draw exactly one."""
    answer = await complete(cluster.http, prompt=random_prompt(40, seed=5), logit_bias={str(EOS): 100}, min_tokens=1)
    choice = answer["choices"][0]
    first, second = choice["token_ids"]
    assert (first != EOS, second, choice["finish_reason"]) == (True, EOS, "stop")
    assert answer["usage"]["completion_tokens"] == 2
    await cluster.wait_quiet()


async def test_max_tokens_1_ends_at_prefill(cluster: ProcessCluster, reference: Reference) -> None:
    prompt = random_prompt(40, seed=6)
    before = await stats_of(cluster, Role.DECODE)
    answer = await complete(cluster.http, prompt=prompt, max_tokens=1, ignore_eos=True)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["token_ids"]) == ("length", reference.tokens(prompt, 1))
    assert answer["usage"]["completion_tokens"] == 1
    assert list(answer["diptych"]["prompt_tokens"]) == [answer["diptych"]["prefill_worker"]]
    await cluster.wait_quiet()
    after = await stats_of(cluster, Role.DECODE)
    assert after.generated_tokens_total == before.generated_tokens_total
    assert after.prompt_tokens_transferred_total == before.prompt_tokens_transferred_total


async def test_one_choice_ends_with_its_first_token_and_another_goes_on(
    cluster: ProcessCluster, never: httpx.AsyncClient
) -> None:
    prompt = random_prompt(40, seed=7)
    fields = {"prompt": prompt, "n": 2, "temperature": 1, "logit_bias": {str(EOS): 5}}
    for seed in range(50):
        local = await complete(never, seed=seed, **fields)
        if sorted(len(choice["token_ids"]) == 1 for choice in local["choices"]) == [False, True]:
            break
    else:
        pytest.fail("no seed draws EOS first for exactly one of two choices; change the bias")
    remote = await complete(cluster.http, seed=seed, **fields)
    assert outcome(remote) == outcome(local)
    assert remote["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in local["choices"])
    await cluster.wait_quiet()


async def test_stop_string_across_the_hand_over(cluster: ProcessCluster) -> None:
    """It begins with prefill's token and is complete with decode's first."""
    prompt = random_prompt(40, seed=8)
    bias = {"logit_bias": {"70": 100, "71": 100}, "repetition_penalty": 2.0}  # draws one, then the other
    free = await complete(cluster.http, prompt=prompt, max_tokens=4, **bias)
    text = free["choices"][0]["text"]
    assert len(text) == 4
    assert text[0] != text[1]
    stopped = await complete(cluster.http, prompt=prompt, max_tokens=4, stop=text[:2], **bias)
    choice = stopped["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert stopped["usage"]["completion_tokens"] == 2
    await cluster.wait_quiet()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("max_tokens", [1, 4])
async def test_logprobs_of_a_completion(
    cluster: ProcessCluster, never: httpx.AsyncClient, max_tokens: int, stream: bool
) -> None:
    body = {
        "model": "tiny",
        "prompt": random_prompt(40, seed=9),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 3,
        "stream": stream,
    }
    remote, local = [await text_logprobs(client, body) for client in (cluster.http, never)]
    assert remote["tokens"] == local["tokens"]
    assert len(remote["tokens"]) == max_tokens
    assert remote["text_offset"] == local["text_offset"]
    assert remote["token_logprobs"] == pytest.approx(local["token_logprobs"], abs=1e-4)
    for ours, theirs in zip(remote["top_logprobs"], local["top_logprobs"], strict=True):
        assert len(ours) >= 3
        assert ours == pytest.approx(theirs, abs=1e-4)


async def text_logprobs(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, list[Any]]:
    if not body["stream"]:
        arrays: dict[str, list[Any]] = (await client.post("/v1/completions", json=body)).json()["choices"][0][
            "logprobs"
        ]
        return arrays
    joined: dict[str, list[Any]] = {}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for event in read_events(response):
            if event != DONE and event["choices"]:
                for name, values in event["choices"][0]["logprobs"].items():
                    joined.setdefault(name, []).extend(values)
    return joined


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_logprobs_of_a_chat(cluster: ProcessCluster, never: httpx.AsyncClient, stream: bool) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "what is the first token worth?"}],
        "max_tokens": 4,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": stream,
    }
    remote, local = [await chat_logprobs(client, body) for client in (cluster.http, never)]
    assert len(remote) == 4
    assert [entry["token"] for entry in remote] == [entry["token"] for entry in local]
    for ours, theirs in zip(remote, local, strict=True):
        assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-4)
        assert [top["token"] for top in ours["top_logprobs"]] == [top["token"] for top in theirs["top_logprobs"]]
        assert ours["top_logprobs"][0] == {name: ours[name] for name in ("token", "logprob", "bytes")}  # greedy


async def chat_logprobs(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    if not body["stream"]:
        content: list[dict[str, Any]] = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0][
            "logprobs"
        ]["content"]
        return content
    entries: list[dict[str, Any]] = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for event in read_events(response):
            if event != DONE and event["choices"]:
                entries += (event["choices"][0]["logprobs"] or {"content": []})["content"]
    return entries


async def test_three_choices_are_distinct_and_replay(
    cluster: ProcessCluster, never: httpx.AsyncClient, rise: Rise
) -> None:
    fields = {"prompt": random_prompt(40, seed=10), "n": 3, "temperature": 1, "seed": 7, "max_tokens": 12}
    first = await complete(cluster.http, cache_salt="first", **fields)
    assert len({tuple(choice["token_ids"]) for choice in first["choices"]}) == 3
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert first["usage"]["prompt_tokens"] == 40
    assert first["diptych"]["transfer_bytes"] == num_blocks(40) * block_bytes(cluster)  # once, not per choice
    rose = await rise.measured()
    assert rose("diptych_prompt_tokens_total", role="prefill", source="computed") == 40

    assert outcome(await complete(cluster.http, cache_salt="first", **fields)) == outcome(first)  # now from caches
    assert outcome(await complete(never, cache_salt="alone", **fields)) == outcome(first)
    other = await complete(cluster.http, cache_salt="first", **(fields | {"seed": 8}))
    assert outcome(other) != outcome(first)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.01},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 0.9, "frequency_penalty": 1.2, "presence_penalty": 0.8},
        {"temperature": 1, "min_tokens": 6, "logit_bias": {str(EOS): 20}},
    ],
    ids=lambda sampling: ",".join(sampling),
)
async def test_sampling_goes_on_where_prefill_left_off(
    cluster: ProcessCluster, never: httpx.AsyncClient, sampling: dict[str, Any]
) -> None:
    """Penalties and randomness depend on the position and on what was drawn: the first token must be part of both."""
    fields = {"prompt": random_prompt(40, seed=11), "seed": 5, "max_tokens": 24, **sampling}
    assert outcome(await complete(cluster.http, **fields)) == outcome(await complete(never, **fields))


def outcome(answer: dict[str, Any]) -> list[tuple[list[int], str, str]]:
    return [(choice["token_ids"], choice["text"], choice["finish_reason"]) for choice in answer["choices"]]
