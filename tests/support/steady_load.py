"""Steady load on an HTTP door: greedy streams whose every token is known beforehand, and what their clients saw."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx
import msgspec
from sse import DONE, read_events

PAUSE_S = 0.02  # between two requests of a client
ANSWER_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Question:
    prompt: list[int]
    answer: list[int]  # what a single engine says


@dataclass
class Seen:
    """By all clients."""

    num_requests: int = 0
    num_tokens: int = 0
    longest_stall_ms: float = 0.0  # between two events of a stream, the wait for the first one included
    stalled_during: str = ""  # what happened to the cluster then
    errors: list[str] = field(default_factory=list)


class SteadyLoad:
    """A context manager: so many clients, each with one stream after the other."""

    def __init__(self, base_url: str, model: str, questions: list[Question], num_clients: int, seed: int) -> None:
        self.seen = Seen()
        self.during = ""  # what happens to the cluster meanwhile, for the errors
        self._base_url = base_url
        self._model = model
        self._questions = questions
        self._seeds = range(seed, seed + num_clients)
        self._stopping = False
        self._ended = asyncio.Event()  # another request
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> SteadyLoad:
        self._tasks = [asyncio.create_task(self._client(random.Random(seed))) for seed in self._seeds]
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Let every stream come to its end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def more(self, num_requests: int) -> None:
        """Return when so many more requests have ended."""
        wanted = self.seen.num_requests + num_requests
        while self.seen.num_requests < wanted:
            self._ended.clear()
            await self._ended.wait()

    async def _client(self, rng: random.Random) -> None:
        async with httpx.AsyncClient(base_url=self._base_url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as http:
            while not self._stopping:
                question = rng.choice(self._questions)
                error = await self._ask(http, question)
                self.seen.num_requests += 1
                self._ended.set()
                if error:
                    self.seen.errors.append(f"during {self.during or 'nothing'}: {error}")
                await asyncio.sleep(PAUSE_S)

    async def _ask(self, http: httpx.AsyncClient, question: Question) -> str:
        """What was wrong with the answer; empty if nothing was."""
        body = {
            "model": self._model,
            "prompt": question.prompt,
            "max_tokens": len(question.answer),
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        tokens: list[int] = []
        last = ""
        heard_s = time.monotonic()
        try:
            async with http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    return f"HTTP {response.status_code}: {(await response.aread()).decode(errors='replace')[:300]}"
                async for event in read_events(response):
                    now_s = time.monotonic()
                    self._note_stall(1e3 * (now_s - heard_s))
                    heard_s = now_s
                    last = event if isinstance(event, str) else ""
                    if last != DONE:
                        if "error" in event:
                            return f"after {len(tokens)} tokens: {msgspec.json.encode(event['error']).decode()}"
                        tokens += _token_ids(event.get("choices", ()))
        except httpx.HTTPError as error:
            return f"after {len(tokens)} tokens: {error!r}"
        self.seen.num_tokens += len(tokens)
        if last != DONE:
            return f"the stream ended without [DONE] after {len(tokens)} tokens"
        return "" if tokens == question.answer else _difference(tokens, question.answer)

    def _note_stall(self, stall_ms: float) -> None:
        if stall_ms > self.seen.longest_stall_ms:
            self.seen.longest_stall_ms, self.seen.stalled_during = stall_ms, self.during


def _token_ids(choices: Iterable[dict[str, list[int]]]) -> list[int]:
    return [token for choice in choices for token in choice.get("token_ids", ())]


def _difference(tokens: list[int], expected: list[int]) -> str:
    same = next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=False)) if a != b), len(tokens))
    return f"{len(tokens)} of {len(expected)} tokens, of which the first {same} are right"
