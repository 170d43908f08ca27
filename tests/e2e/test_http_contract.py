"""What the HTTP door promises, against a real cluster: the format of streams, usage, headers, and the routes beside
generation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from process_cluster import ProcessCluster
from reference import BLOCK, random_prompt
from sse import DONE, read_events

from diptych.messages import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello there"}]
GREEDY = {"model": "tiny", "temperature": 0, "ignore_eos": True}
CHAT_BODY = GREEDY | {"messages": HELLO, "max_tokens": 6}
TEXT_BODY = GREEDY | {"prompt": "hello there", "max_tokens": 6}
either = pytest.mark.parametrize(("path", "body"), [(CHAT, CHAT_BODY), (TEXT, TEXT_BODY)], ids=["chat", "text"])


async def post(cluster: ProcessCluster, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await cluster.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


async def stream(cluster: ProcessCluster, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks before [DONE], which must be the last event."""
    async with cluster.http.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [event async for event in read_events(response)]
    assert events.pop() == DONE
    assert DONE not in events
    return events


# --- streams ------------------------------------------------------------------------------------------------------


async def test_bytes_of_a_stream(cluster: ProcessCluster) -> None:
    """Nothing but `data: ` lines, each followed by one empty line."""
    answer = await cluster.http.post(CHAT, json=CHAT_BODY | {"stream": True})
    *events, end = answer.content.split(b"\n\n")
    assert end == b""
    assert events[-1] == b"data: [DONE]"
    for event in events[:-1]:
        assert event.startswith(b"data: {")
        assert b"\n" not in event
        json.loads(event.removeprefix(b"data: "))


async def test_chat_chunks(cluster: ProcessCluster) -> None:
    first, *rest = await stream(cluster, CHAT, CHAT_BODY)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for chunk in (first, *rest):
        assert chunk["object"] == "chat.completion.chunk"
        assert [chunk[name] for name in ("id", "created", "model")] == [
            first[name] for name in ("id", "created", "model")
        ]
        assert chunk["id"].startswith("chatcmpl-")
        assert "usage" not in chunk
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in rest)
    assert [chunk["choices"][0]["finish_reason"] for chunk in (first, *rest)] == [None] * len(rest) + ["length"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in rest)
    assert text == (await post(cluster, CHAT, CHAT_BODY))["choices"][0]["message"]["content"]


async def test_text_chunks(cluster: ProcessCluster) -> None:
    chunks = await stream(cluster, TEXT, TEXT_BODY)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == (await post(cluster, TEXT, TEXT_BODY))["choices"][0]["text"]


async def test_every_choice_of_a_stream_has_its_role_and_its_end(cluster: ProcessCluster) -> None:
    body = CHAT_BODY | {"n": 3, "temperature": 1, "seed": 1}
    chunks = await stream(cluster, CHAT, body)
    whole = await post(cluster, CHAT, body)
    for index in range(3):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert choices[0]["delta"].get("role") == "assistant"
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
        assert choices[-1]["finish_reason"] == "length"
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == whole["choices"][index]["message"]["content"]


@either
async def test_usage_chunk(cluster: ProcessCluster, path: str, body: dict[str, Any]) -> None:
    *chunks, last = await stream(cluster, path, body | {"stream_options": {"include_usage": True}})
    assert last["choices"] == []
    assert last["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": (await post(cluster, path, body))["usage"]["prompt_tokens"],
        "completion_tokens": 6,
        "total_tokens": last["usage"]["prompt_tokens"] + 6,
        "prompt_tokens_details": None,
    }
    assert all(chunk["usage"] is None for chunk in chunks)


@either
async def test_continuous_usage(cluster: ProcessCluster, path: str, body: dict[str, Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream(cluster, path, body | {"stream_options": options, "return_token_ids": True})
    so_far = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert so_far == sorted(so_far)
    assert so_far[-1] == 6
    seen = 0
    for chunk in chunks:
        seen += sum(len(choice.get("token_ids", [])) for choice in chunk["choices"])
        usage = chunk["usage"]
        assert usage["completion_tokens"] >= seen  # a token counts when it is drawn, also while its text is held back
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert seen == 6


async def test_no_broken_characters(cluster: ProcessCluster) -> None:
    """A random model draws bytes that are no characters; what is shown is the same text, chunk by chunk."""
    body = GREEDY | {"prompt": "é", "max_tokens": 200, "temperature": 1.5, "seed": 2}
    chunks = await stream(cluster, TEXT, body)
    whole = await post(cluster, TEXT, body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]


async def test_nothing_of_a_stop_string_is_shown(cluster: ProcessCluster) -> None:
    free = (await post(cluster, TEXT, TEXT_BODY | {"max_tokens": 60}))["choices"][0]["text"]
    stop = free[20:24]
    at = free.index(stop)
    body = TEXT_BODY | {"max_tokens": 60, "stop": ["\x00never", stop]}
    chunks = await stream(cluster, TEXT, body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == free[:at]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    whole = await post(cluster, TEXT, body)
    assert (whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == (free[:at], "stop")
    await cluster.wait_quiet()


# --- whole answers ------------------------------------------------------------------------------------------------


async def test_whole_chat(cluster: ProcessCluster) -> None:
    answer = await post(cluster, CHAT, CHAT_BODY)
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] | {"content": ""} == {"role": "assistant", "content": "", "refusal": None}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")


async def test_forms_of_a_prompt(cluster: ProcessCluster) -> None:
    """Text, its token ids, and lists of either are the same prompt."""
    tokens = (await post(cluster, "/tokenize", {"prompt": "hello there"}))["tokens"]
    texts = []
    for prompt in ("hello there", ["hello there"], tokens, [tokens]):
        answer = await post(cluster, TEXT, TEXT_BODY | {"prompt": prompt})
        assert answer["usage"]["prompt_tokens"] == len(tokens)
        texts.append(answer["choices"][0]["text"])
    assert len(set(texts)) == 1
    many = await post(cluster, TEXT, TEXT_BODY | {"prompt": ["hello there", "x"]})
    assert [choice["index"] for choice in many["choices"]] == [0, 1]
    assert many["choices"][0]["text"] == texts[0]
    assert many["usage"]["prompt_tokens"] == len(tokens) + 1
    assert many["usage"]["completion_tokens"] == 12


async def test_echo(cluster: ProcessCluster) -> None:
    plain = (await post(cluster, TEXT, TEXT_BODY))["choices"][0]["text"]
    assert (await post(cluster, TEXT, TEXT_BODY | {"echo": True}))["choices"][0]["text"] == f"hello there{plain}"
    chunks = await stream(cluster, TEXT, TEXT_BODY | {"echo": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == f"hello there{plain}"


async def test_content_parts_and_roles(cluster: ProcessCluster) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]
    joined = await post(cluster, CHAT, CHAT_BODY | {"messages": [{"role": "user", "content": "hello\nthere"}]})
    apart = await post(cluster, CHAT, CHAT_BODY | {"messages": [{"role": "user", "content": parts}]})
    assert apart["choices"] == joined["choices"]
    roles = ("system", "developer", "user", "assistant", "tool", "user")
    await post(cluster, CHAT, CHAT_BODY | {"messages": [{"role": role, "content": "x"} for role in roles]})


async def test_max_completion_tokens_wins(cluster: ProcessCluster) -> None:
    answer = await post(cluster, CHAT, CHAT_BODY | {"max_tokens": 50, "max_completion_tokens": 3})
    assert answer["usage"]["completion_tokens"] == 3


async def test_completions_default_to_16_tokens(cluster: ProcessCluster) -> None:
    answer = await post(cluster, TEXT, GREEDY | {"prompt": "hello"})
    assert answer["usage"]["completion_tokens"] == 16


# --- caches -------------------------------------------------------------------------------------------------------


async def test_repeated_prompt_is_cached(cluster: ProcessCluster) -> None:
    body = GREEDY | {"prompt": random_prompt(3 * BLOCK + 5, seed=1), "max_tokens": 4}
    first, second = [await post(cluster, TEXT, body) for _ in range(2)]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 3 * BLOCK
    assert second["choices"] == first["choices"]


async def test_cache_salt_separates(cluster: ProcessCluster) -> None:
    """Neither worker shares a block between salts, or with those who give none."""
    body = GREEDY | {"prompt": random_prompt(3 * BLOCK + 5, seed=2), "max_tokens": 4, "return_report": True}
    answers = [await post(cluster, TEXT, body | salt) for salt in ({}, {"cache_salt": "a"}, {"cache_salt": "b"})]
    for answer in answers:
        report = answer["diptych"]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert all(sources["local_cache"] == 0 for sources in report["prompt_tokens"].values())
        assert report["transfer_bytes"] == answers[0]["diptych"]["transfer_bytes"] > 0
        assert answer["choices"] == answers[0]["choices"]
    again = await post(cluster, TEXT, body | {"cache_salt": "a"})
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 3 * BLOCK


# --- headers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"n": 99}], ids=["whole", "stream", "error"])
async def test_request_id_is_echoed(cluster: ProcessCluster, more: dict[str, Any]) -> None:
    answer = await cluster.http.post(CHAT, json=CHAT_BODY | more, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"


async def test_request_id_is_made_where_none_fits(cluster: ProcessCluster) -> None:
    made = (await cluster.http.post(TEXT, json=TEXT_BODY)).headers["x-request-id"]
    again = (await cluster.http.post(TEXT, json=TEXT_BODY, headers={"X-Request-Id": "x" * 1000})).headers[
        "x-request-id"
    ]
    assert made
    assert again
    assert made != again
    assert len(again) < 1000


async def test_one_request_id_twice_at_once(cluster: ProcessCluster) -> None:
    """The client's id is for its logs; it need not be unique."""
    headers = {"X-Request-Id": "twice"}
    body = TEXT_BODY | {"stream": True, "max_tokens": 200}
    async with cluster.http.stream("POST", TEXT, json=body, headers=headers) as response:
        assert response.status_code == 200
        second = await cluster.http.post(TEXT, json=TEXT_BODY, headers=headers)
        assert second.status_code == 200
        assert [event async for event in read_events(response)][-1] == DONE


async def test_unknown_fields_are_named(cluster: ProcessCluster) -> None:
    answer = await cluster.http.post(CHAT, json=CHAT_BODY | {"parallel_tool_calls": True, "store": False})
    assert answer.status_code == 200
    assert answer.headers["x-diptych-ignored"] == "parallel_tool_calls,store"
    assert "x-diptych-ignored" not in (await cluster.http.post(CHAT, json=CHAT_BODY)).headers


# --- the other routes ---------------------------------------------------------------------------------------------


async def test_models(cluster: ProcessCluster) -> None:
    listed = (await cluster.http.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 2048)
    assert (await cluster.http.get("/v1/models/tiny")).json() == model
    missing = await cluster.http.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_tokenize_and_back(cluster: ProcessCluster) -> None:
    answer = await post(cluster, "/tokenize", {"model": "tiny", "prompt": "hello the world é"})
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 2048
    back = await post(cluster, "/detokenize", {"model": "tiny", "tokens": answer["tokens"]})
    assert back == {"prompt": "hello the world é"}
    chat = await post(cluster, "/tokenize", {"messages": HELLO})
    assert chat["count"] == (await post(cluster, CHAT, CHAT_BODY))["usage"]["prompt_tokens"]
    wrong = await cluster.http.post("/detokenize", json={"tokens": [100_000]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")


async def test_health_live_and_version(cluster: ProcessCluster) -> None:
    health = await cluster.health()
    assert (health["status_code"], health["healthy"], health["reasons"]) == (200, True, [])
    assert health["details"]["degraded"] == []
    assert (await cluster.http.get("/live")).status_code == 200
    assert (await cluster.http.get("/version")).json()["version"]


async def test_metrics(cluster: ProcessCluster) -> None:
    before = await cluster.settled_metrics()
    usage = (await post(cluster, TEXT, TEXT_BODY))["usage"]
    await cluster.http.post(TEXT, json=TEXT_BODY | {"n": 99})
    after = await cluster.settled_metrics()

    def rise(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert rise("diptych_requests_total", code="ok") == 1
    assert rise("diptych_requests_total", code="invalid_value") == 1
    assert rise("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert rise("vllm:generation_tokens_total") == 6
    assert rise("vllm:request_success_total", finished_reason="length") == 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_time_per_output_token"):
        assert rise(f"vllm:{name}_seconds_count") == 1
    assert rise("vllm:inter_token_latency_seconds_count") == 5
    for worker in cluster.workers:
        labels = {"worker": worker.record.worker_id}
        assert after.value("diptych_blocks", **labels) == worker.record.num_blocks  # I3: no state is left out
        assert after.value("vllm:cache_config_info", **labels, block_size="16") == 1
        assert after.value("vllm:kv_cache_usage_perc", **labels) == 0
        assert after.value("vllm:num_requests_running", **labels) == 0
    assert {role.value for role in Role} == {
        labels["role"] for name, labels, _ in after.samples if name == "diptych_blocks"
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("POST", "/v1/models", 405), ("GET", "/nothing/here", 404)],
)
async def test_wrong_routes_answer_in_the_same_shape(
    cluster: ProcessCluster, method: str, path: str, status: int
) -> None:
    answer = await cluster.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
