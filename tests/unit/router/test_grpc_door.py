"""The gRPC door's streams without a socket: two that want one id, clients that do not read, aborts that come early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import pytest
from doors import Doors
from scripted_core import ScriptedCore
from virtual_time import run_in_virtual_time

from diptych.tokenizer import Tokenizer
from diptych.v1 import inference_pb2 as pb
from router.grpc_door import InferenceDoor


class Refused(Exception):
    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


class Call:
    """The server's side of one call."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def abort(self, status: grpc.StatusCode, message: str, metadata: Any) -> NoReturn:
        raise Refused(status, message)


class SlowTokenizer:
    """Encodes when it is let."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self._tokenizer = tokenizer

    async def encode_async(self, text: str, *, add_special: bool) -> list[int]:
        self.asked.set()
        await self.let.wait()
        return self._tokenizer.encode(text, add_special=add_special)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    doors = Doors(tmp_path, ScriptedCore(lambda _: []))
    doors.speak("größe 🦊 fox")
    return doors


def generate(door: InferenceDoor, request_id: str = "mine") -> AsyncGenerator[pb.GenerateResponse, None]:
    request = pb.GenerateRequest(text="hello", request_id=request_id)
    return cast("AsyncGenerator[pb.GenerateResponse, None]", door.Generate(request, Call()))


async def read(messages: AsyncGenerator[pb.GenerateResponse, None]) -> str:
    return "".join([message.text async for message in messages])


async def test_an_id_is_taken_before_the_prompt_is_tokenized(doors: Doors) -> None:
    slow = SlowTokenizer(doors.tokenizer)
    door = InferenceDoor(replace(doors.frontend, tokenizer=cast(Any, slow)))
    first = asyncio.create_task(read(generate(door)))
    await slow.asked.wait()
    second = asyncio.create_task(read(generate(door)))
    await asyncio.sleep(0)
    slow.let.set()
    with pytest.raises(Refused, match="in use"):
        await second
    assert await first == "größe 🦊 fox"
    assert await read(generate(door)) == "größe 🦊 fox", "the id is free again"


async def test_an_abort_while_the_prompt_is_tokenized_counts(doors: Doors) -> None:
    slow = SlowTokenizer(doors.tokenizer)
    door = InferenceDoor(replace(doors.frontend, tokenizer=cast(Any, slow)))
    reading = asyncio.create_task(read(generate(door)))
    await slow.asked.wait()
    await door.Abort(pb.AbortRequest(request_id="mine"), Call())
    slow.let.set()
    with pytest.raises(Refused, match="aborted"):
        await reading
    assert doors.core.requests == []


async def test_all_is_given_back_when_the_stream_is_closed_and_not_some_time_later(doors: Doors) -> None:
    messages = generate(InferenceDoor(doors.frontend))
    await anext(messages)
    await messages.aclose()
    assert doors.core.endings == ["closed"]


def test_a_client_that_does_not_read_holds_nothing_after_the_deadline(tmp_path: Path) -> None:
    doors = Doors(tmp_path, ScriptedCore(lambda _: []), request_deadline_ms=60_000)
    doors.speak("größe 🦊 fox")

    async def do_not_read() -> None:
        messages = generate(InferenceDoor(doors.frontend))
        await anext(messages)
        await doors.core.closed.wait()
        assert 60 <= asyncio.get_running_loop().time() < 62
        with pytest.raises(Refused) as caught:
            await anext(messages)
        assert caught.value.status is grpc.StatusCode.DEADLINE_EXCEEDED

    run_in_virtual_time(do_not_read())
    assert doors.counted("cancelled") == 1
