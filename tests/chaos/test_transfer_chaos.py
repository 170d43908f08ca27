"""A short run of the campaigns of `tests.chaos.transfer`; and that their judge sees every kind of bad end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path

import chaos_load
import httpx
import pytest
from chaos_load import Bank, End, Load, Verdicts
from chaos_tally import is_clean

from tests.chaos.transfer import Chaos, run

RIGHT, WRONG = [5, 6, 7], [5, 9, 7]
DIFFERS = "a second attempt drew other tokens than the first; the answer ends here"
Answer = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


class OneAnswer(Bank):
    """Every question has the same one."""

    def __init__(self, stream: bool) -> None:
        self._stream = stream

    def draw(self) -> chaos_load.Question:
        return chaos_load.Question([1, 2], RIGHT, self._stream, salt="")


def whole(tokens: list[int]) -> Answer:
    return reply(200, json.dumps({"choices": [{"token_ids": tokens}]}).encode())


def refusal(code: str, message: str = "why") -> dict[str, object]:
    return {"error": {"code": code, "message": message}}


def stream(*events: object, done: bool = True) -> Answer:
    texts = [*map(json.dumps, events), *(["[DONE]"] if done else [])]
    return reply(200, "".join(f"data: {text}\n\n" for text in texts).encode())


def part(tokens: list[int]) -> dict[str, object]:
    return {"choices": [{"token_ids": tokens}]}


def reply(status: int, content: bytes) -> Answer:
    async def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=content)

    return answer


async def silence(_request: httpx.Request) -> httpx.Response:
    return await asyncio.Future[httpx.Response]()


async def cut(_request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("the peer closed the connection")


async def judge(answer: Answer, streams: bool) -> Verdicts:
    verdicts = Verdicts()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://router") as http:
        await Load(http, OneAnswer(streams), verdicts).ask(1)
    return verdicts


@pytest.mark.parametrize(
    ("answer", "streams", "end", "wrong"),
    [
        (whole(RIGHT), False, End.COMPLETE, 0),
        (whole(WRONG), False, End.COMPLETE, 1),
        (whole(RIGHT[:2]), False, End.COMPLETE, 1),
        (reply(502, json.dumps(refusal("leg_failed")).encode()), False, End.ERROR, 0),
        (reply(500, b"oops"), False, End.BROKEN, 0),
        (cut, False, End.BROKEN, 0),
        (silence, False, End.HANG, 0),
        (stream(part(RIGHT[:1]), part(RIGHT[1:])), True, End.COMPLETE, 0),
        (stream(part(RIGHT[:1]), part(WRONG[1:])), True, End.COMPLETE, 1),
        (stream(part(RIGHT), part(RIGHT[2:])), True, End.COMPLETE, 1),
        (stream(part(RIGHT[:2]), refusal("leg_failed"), done=False), True, End.ERROR, 0),
        (stream(part(WRONG[:2]), refusal("leg_failed"), done=False), True, End.ERROR, 1),
        (stream(part(RIGHT), done=False), True, End.BROKEN, 0),
    ],
)
async def test_judged(answer: Answer, streams: bool, end: End, wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_load, "DEADLINE_S", 0.0)
    monkeypatch.setattr(chaos_load, "GRACE_S", 0.2)
    verdicts = await judge(answer, streams)
    assert (verdicts.ends, verdicts.wrong_tokens, verdicts.disagreements) == ({end: 1}, wrong, 0)


async def test_two_attempts_that_differ() -> None:
    verdicts = await judge(stream(part(RIGHT[:1]), refusal("internal_error", DIFFERS), done=False), True)
    assert (verdicts.ends, verdicts.disagreements) == ({End.ERROR: 1}, 1)


async def test_a_client_that_leaves() -> None:
    verdicts = Verdicts()
    async with httpx.AsyncClient(transport=httpx.MockTransport(silence), base_url="http://router") as http:
        assert await Load(http, OneAnswer(False), verdicts).leave(after_s=0.01)
    assert verdicts.ends == {End.LEFT: 1}


@pytest.mark.slow
async def test_killed_frozen_left_and_spoiled(tmp_path: Path) -> None:
    numbers = await run(Chaos(tmp_path, seed=1), kills=6, freezes=4, cancels=20, corruptions=200)
    assert is_clean(numbers), numbers
    assert [numbers[name] for name in ("kills", "freezes")] == [6, 4]
    assert numbers["cancels"] >= 20  # type: ignore[operator]
