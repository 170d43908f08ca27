"""The HTTP door on a real socket: streaming as it happens, clients that leave, and clients nobody here wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
from doors import Doors
from scripted_core import ScriptedCore

from diptych.errors import LegFailed

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
LIMIT_S = 30.0  # of what takes milliseconds, on a busy machine


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    doors = Doors(tmp_path, ScriptedCore(lambda _: []))
    doors.speak("größe 🦊 fox")
    return doors


@pytest.fixture
async def url(doors: Doors) -> AsyncIterator[str]:
    async with doors.serve_http() as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_chunks_arrive_while_the_core_still_works(url: str, doors: Doors) -> None:
    doors.core.hold_after = 2
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        first = json.loads((await anext(lines)).removeprefix("data: "))
        assert first["choices"][0]["delta"]["role"] == "assistant"
        await asyncio.wait_for(doors.core.holding.wait(), LIMIT_S)
        doors.core.release.set()
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert doors.core.endings == ["finished"]


@pytest.mark.parametrize("hold_after", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_leaves_cancels_at_once(url: str, doors: Doors, streaming: bool, hold_after: int) -> None:
    doors.core.hold_after = hold_after
    body = json.dumps({**CHAT, "stream": streaming}).encode()
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.wait_for(doors.core.holding.wait(), LIMIT_S)
    if streaming and hold_after:
        assert b"200 OK" in await reader.readline()
    writer.close()
    await asyncio.wait_for(doors.core.closed.wait(), LIMIT_S)
    assert doors.core.endings == ["cancelled"]
    assert doors.counted("cancelled") == 1
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/live")).status_code == 200


async def test_leaving_cancels_every_prompt_of_a_call(url: str, doors: Doors) -> None:
    doors.core.hold_after = 1
    async with httpx.AsyncClient() as client:
        call = asyncio.create_task(client.post(f"{url}/v1/completions", json={"prompt": ["a", "b", "c"]}))
        for _ in range(3):
            await asyncio.wait_for(doors.core.held.get(), LIMIT_S)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    for _ in range(3):
        await asyncio.wait_for(doors.core.ended.get(), LIMIT_S)
    assert set(doors.core.endings) == {"cancelled"}


async def test_a_connection_serves_several_requests(url: str, doors: Doors) -> None:
    async with httpx.AsyncClient() as client:
        for streaming in (False, True, False):
            answer = await client.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": streaming})
            assert answer.status_code == 200
    assert doors.core.endings == ["finished"] * 3


async def test_openai_client_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], n=2, logprobs=True, top_logprobs=1
    )
    assert [choice.message.content for choice in answer.choices] == ["größe 🦊 fox"] * 2
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None


async def test_openai_client_chat_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "größe 🦊 fox"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


async def test_openai_client_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt=["a", "b"], logprobs=1)
    assert [choice.text for choice in answer.choices] == ["größe 🦊 fox"] * 2
    stream = await client.completions.create(model="tiny", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "größe 🦊 fox"


async def test_openai_client_models_and_errors(client: openai.AsyncOpenAI, doors: Doors) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).id == "tiny"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], temperature=9)
    assert caught.value.param == "temperature"
    doors.core.error, doors.core.fail_after = LegFailed("the worker died"), 2
    stream = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    with pytest.raises(openai.APIError, match="the worker died"):
        [chunk async for chunk in stream]
