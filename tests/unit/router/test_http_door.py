from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from doors import Doors, sse
from scripted_core import ScriptedCore
from virtual_time import run_in_virtual_time

from diptych.errors import ALL_ERRORS, LegFailed, NoCapacity
from diptych.messages import LegStats
from router.frontend import HealthView

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    doors = Doors(tmp_path, ScriptedCore(lambda _: []))
    doors.speak("größe 🦊 fox")
    return doors


@pytest.fixture
async def client(doors: Doors) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(doors.app), base_url="http://door") as client:
        yield client


async def stream(client: httpx.AsyncClient, path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
    answer = await client.post(path, json={**(CHAT if "chat" in path else {}), "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return sse(answer.text)


async def test_a_chat(client: httpx.AsyncClient, doors: Doors) -> None:
    doors.core.prefill = LegStats(prompt_cached=4)
    answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "größe 🦊 fox", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"], choice["index"]) == ("stop", None, 0)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    assert answer["id"].startswith("chatcmpl-")
    assert "diptych" not in answer


async def test_a_chat_stream_has_role_text_reason_and_done(client: httpx.AsyncClient) -> None:
    *chunks, done = await stream(client)
    assert done == "[DONE]"
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "größe 🦊 fox"
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]] == ["stop"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert all("usage" not in c for c in chunks)
    assert not any("\ufffd" in json.dumps(c, ensure_ascii=False) for c in chunks)


async def test_usage_comes_in_a_chunk_of_its_own(client: httpx.AsyncClient) -> None:
    *chunks, last, done = await stream(client, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 1
    assert all(c["usage"] is None for c in chunks)


async def test_continuous_usage_rises(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = await stream(client, stream_options=options)
    counts = [c["usage"]["completion_tokens"] for c in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2]


async def test_choices_interleave_by_index(client: httpx.AsyncClient) -> None:
    *chunks, _ = await stream(client, n=3)
    indices = [c["choices"][0]["index"] for c in chunks]
    assert set(indices) == {0, 1, 2}
    assert indices != sorted(indices)
    for i in range(3):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == i]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == "größe 🦊 fox"


async def test_chat_logprobs(client: httpx.AsyncClient, doors: Doors) -> None:
    fields = {**CHAT, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
    answer = (await client.post("/v1/chat/completions", json=fields)).json()
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert bytes(b for entry in content[:-1] for b in entry["bytes"]).decode() == "größe 🦊 fox"
    assert content[-1]["token"] == "<|im_end|>"
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(content)
    assert len(choice["token_ids"]) == len(content) == answer["usage"]["completion_tokens"]
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    *chunks, _ = await stream(client, logprobs=True, top_logprobs=2)
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {}).get("content", [])]
    assert streamed == content


async def test_completion_with_legacy_logprobs(client: httpx.AsyncClient) -> None:
    fields = {"prompt": "hi", "logprobs": 1}
    (choice,) = (await client.post("/v1/completions", json=fields)).json()["choices"]
    logprobs = choice["logprobs"]
    tokens = logprobs["tokens"]
    assert logprobs["text_offset"] == [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    assert logprobs["token_logprobs"] == [-0.5] * len(tokens)
    assert all(token in top for token, top in zip(tokens, logprobs["top_logprobs"], strict=True))
    *chunks, _ = await stream(client, "/v1/completions", **fields)
    offsets = [o for c in chunks for o in c["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == logprobs["text_offset"]


async def test_completions_of_several_prompts_with_echo(client: httpx.AsyncClient) -> None:
    fields = {"prompt": ["one ", "two "], "n": 2, "echo": True}
    answer = (await client.post("/v1/completions", json=fields)).json()
    expected = [f"{prompt}größe 🦊 fox" for prompt in ("one ", "one ", "two ", "two ")]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    *chunks, _ = await stream(client, "/v1/completions", **fields)
    choices = [c["choices"][0] for c in chunks]
    assert ["".join(c["text"] for c in choices if c["index"] == i) for i in range(4)] == expected


async def test_the_report_says_where_it_ran(client: httpx.AsyncClient, doors: Doors) -> None:
    doors.core.prefill = LegStats(prompt_computed=9, prompt_cached=16)
    doors.core.decode = LegStats(prompt_transferred=25, transfer_bytes=4096, transfer_ms=1.5, exposed_ms=0.5)
    answer = (await client.post("/v1/chat/completions", json={**CHAT, "return_report": True})).json()
    report = answer["diptych"]
    assert (report["prefill_worker"], report["decode_worker"]) == ("prefill-a", "decode-b")
    assert report["prompt_tokens"] == {
        "prefill-a": {"computed": 9, "local_cache": 16, "transferred": 0},
        "decode-b": {"computed": 0, "local_cache": 0, "transferred": 25},
    }
    assert (report["transfer_bytes"], report["transfer_ms"], report["exposed_ms"]) == (4096, 1.5, 0.5)
    assert report["ttft_ms"] > 0
    *_, last, _ = await stream(client, return_report=True)
    assert last["choices"] == []
    assert last["diptych"]["reason"] == "remote prefill is cheaper"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_placement_is_told_in_a_header_to_who_asks(
    client: httpx.AsyncClient, doors: Doors, streamed: bool
) -> None:
    doors.core.prefill = LegStats(prompt_cached=4)
    asks = {"x-diptych-placement": "1", "x-request-id": "mine"}
    answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": streamed}, headers=asks)
    told = json.loads(answer.headers["x-diptych-placement"])
    assert (told["prefill_worker"], told["decode_worker"]) == ("prefill-a", "decode-b")
    assert (told["predicted_cached_tokens"], told["cached_tokens"], told["retries"]) == (0, 4, 0)
    assert told["ttft_ms"] > 0
    assert told["request_id"] == doors.core.requests[0].request_id
    assert doors.core.requests[0].client_id == "mine"
    for headers in ({}, {"x-diptych-placement": "0"}):
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": streamed}, headers=headers)
        assert "x-diptych-placement" not in answer.headers


async def test_the_header_lists_the_placements_of_several_prompts(client: httpx.AsyncClient) -> None:
    body = {"prompt": ["one", "two"]}
    answer = await client.post("/v1/completions", json=body, headers={"x-diptych-placement": "1"})
    first, second = json.loads(answer.headers["x-diptych-placement"])
    assert first["request_id"].endswith("-0")
    assert second["request_id"].endswith("-1")


async def test_ignored_fields_are_named_in_a_header(client: httpx.AsyncClient) -> None:
    fields = {**CHAT, "tools": [], "response_format": {}, "priority": 1}
    answer = await client.post("/v1/chat/completions", json=fields)
    assert answer.headers["x-diptych-ignored"] == "response_format,tools"
    assert "x-diptych-ignored" not in (await client.post("/v1/chat/completions", json=CHAT)).headers


async def test_request_ids_come_back(client: httpx.AsyncClient) -> None:
    headers = {"X-Request-Id": "mine-1"}
    assert (await client.get("/live", headers=headers)).headers["x-request-id"] == "mine-1"
    refused = await client.post("/v1/completions", content=b"{", headers=headers)
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "mine-1")
    assert len((await client.get("/live", headers={"X-Request-Id": "x" * 129})).headers["x-request-id"]) == 32


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ALL_ERRORS)
async def test_an_error_before_the_first_token_has_its_status(
    client: httpx.AsyncClient, doors: Doors, kind: type[Any], streaming: bool
) -> None:
    doors.core.error = kind("why", param="p", retry_after_s=0.2)
    answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": streaming})
    assert answer.status_code == kind.http_status
    assert answer.json()["error"] == {"message": "why", "type": kind.openai_type, "param": "p", "code": kind.code}
    assert answer.headers["retry-after"] == "1"
    assert doors.counted(kind.code) == 1


async def test_an_error_in_mid_stream_is_the_end_and_not_done(client: httpx.AsyncClient, doors: Doors) -> None:
    doors.core.error, doors.core.fail_after = LegFailed("the worker died"), 2
    events = await stream(client)
    assert events[-1] == {
        "error": {"message": "the worker died", "type": "server_error", "param": None, "code": "leg_failed"}
    }
    assert "[DONE]" not in events
    assert len(events) > 2


@pytest.mark.parametrize("fail_after", [0, 2])
async def test_unexpected_errors_say_and_log_nothing_of_the_prompt(
    client: httpx.AsyncClient, doors: Doors, fail_after: int
) -> None:
    doors.core.error, doors.core.fail_after = RuntimeError("secret prompt"), fail_after
    answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == (500 if fail_after == 0 else 200)
    assert "internal_error" in answer.text
    assert "secret" not in answer.text
    assert "secret" not in doors.log.getvalue()
    assert "RuntimeError" in doors.log.getvalue()
    assert doors.counted("internal_error") == 1


async def test_refusals_are_counted_and_never_reach_the_core(client: httpx.AsyncClient, doors: Doors) -> None:
    assert (await client.post("/v1/completions", content=b"{")).status_code == 400
    assert (await client.post("/v1/chat/completions", json={**CHAT, "model": "other"})).status_code == 404
    assert (await client.post("/v1/completions", json={"prompt": "x" * 10_001})).status_code == 413
    assert (doors.counted("invalid_value"), doors.counted("model_not_found")) == (1, 1)
    assert doors.counted("payload_too_large") == 1
    assert doors.core.requests == []


async def test_an_unannounced_large_body_is_refused_while_reading(client: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000

    assert (await client.post("/v1/completions", content=parts())).status_code == 413


def test_a_body_that_does_not_come_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    doors = Doors(tmp_path, ScriptedCore(lambda _: []), request_deadline_ms=60_000)
    parts = [b'{"messages": ']
    sent: list[Any] = []

    async def receive() -> Any:
        if not parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": parts.pop(), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        path = "/v1/chat/completions"
        await doors.app({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
        assert 60 <= asyncio.get_running_loop().time() < 62

    run_in_virtual_time(ask())
    assert sent[0]["status"] == 504
    assert doors.counted("deadline_exceeded") == 1


async def test_unknown_paths_and_methods_are_errors_of_the_same_shape(client: httpx.AsyncClient) -> None:
    missing, method = await client.get("/v2"), await client.get("/v1/completions")
    assert (missing.status_code, method.status_code) == (404, 405)
    assert set(missing.json()["error"]) == set(method.json()["error"]) == {"message", "type", "param", "code"}


async def test_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["data"] == [(await client.get("/v1/models/tiny")).json()]
    assert listed["data"][0]["max_model_len"] == 256
    other = await client.get("/v1/models/org/other")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


async def test_tokenize_and_back(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "größe", "add_special_tokens": False})).json()
    assert answer["count"] == len(answer["tokens"])
    assert (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json() == {"prompt": "größe"}
    chat = (await client.post("/tokenize", json={**CHAT, "model": "tiny"})).json()
    text = (await client.post("/detokenize", json={"tokens": chat["tokens"]})).json()["prompt"]
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert (await client.post("/tokenize", json={})).status_code == 400
    assert (await client.post("/detokenize", json={"tokens": [10**6]})).status_code == 400


async def test_health_live_version_metrics(client: httpx.AsyncClient, doors: Doors) -> None:
    assert (await client.get("/health")).json()["details"] == {"workers": 2}
    doors.view = HealthView(healthy=False, ready=False, reasons=("no decode worker",))
    unhealthy = await client.get("/health")
    assert (unhealthy.status_code, unhealthy.json()["reasons"]) == (503, ["no decode worker"])
    assert (await client.get("/live")).status_code == 200
    assert (await client.get("/version")).json()["version"]
    await client.post("/v1/chat/completions", json=CHAT)
    metrics = await client.get("/metrics")
    assert 'diptych_requests_total{code="ok",model_name="tiny"} 1.0' in metrics.text
    assert "vllm:time_to_first_token_seconds_count" in metrics.text


async def test_the_clients_trace_goes_on(client: httpx.AsyncClient, doors: Doors) -> None:
    await client.post("/v1/chat/completions", json=CHAT, headers={"traceparent": "00-a-b-01"})
    assert doors.core.requests[0].traceparent == "00-a-b-01"


async def test_the_server_lives_on_after_every_kind_of_nonsense(client: httpx.AsyncClient, doors: Doors) -> None:
    for content in (b"", b"null", b"[1]", b"\x00", b'{"messages": 1}', b'{"messages":[{"role":"user","content":{}}]}'):
        assert (await client.post("/v1/chat/completions", content=content)).status_code == 400
    doors.core.error = NoCapacity("busy", retry_after_s=3)
    assert (await client.post("/v1/chat/completions", json=CHAT)).headers["retry-after"] == "3"
    doors.core.error = None
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_priority_and_limit_reach_the_core(tmp_path: Path) -> None:
    doors = Doors(tmp_path, ScriptedCore(lambda _: []), ttft_limit_ms=5_000)
    doors.speak("fox")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(doors.app), base_url="http://door") as client:
        for given in ({}, {"X-Diptych-TTFT-Limit-Ms": "250"}, {"X-Diptych-TTFT-Limit-Ms": "0"}):
            await client.post("/v1/chat/completions", json={**CHAT, "priority": 7}, headers=given)
        assert [request.ttft_limit_ms for request in doors.core.requests] == [5_000, 250, 0]
        assert {request.priority for request in doors.core.requests} == {7}
        for wrong in ("-1", "soon", "1e3", "2147483648", "", "\u0664".encode()):
            headers: Any = {"X-Diptych-TTFT-Limit-Ms": wrong}
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 400, wrong
            assert answer.json()["error"]["param"] == "x-diptych-ttft-limit-ms"


async def test_when_to_come_again_is_rounded_up_to_seconds(tmp_path: Path) -> None:
    doors = Doors(tmp_path, ScriptedCore(lambda _: [], error=NoCapacity("full", retry_after_s=3.2)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(doors.app), base_url="http://door") as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "4")
