"""Clients that keep asking a cluster while somebody does it harm, and judge every answer by its token ids.

A question is one of a bank's prompts, whose answers a single engine gave beforehand, with a cache salt of its own: so
every request computes and moves all of its KV. Knows nothing of what is done to the cluster.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

import httpx
from reference import Reference, random_prompt
from sse import DONE, read_events

DEADLINE_S = 20.0  # of every request; the router's `request_deadline_ms`
GRACE_S = 1.0  # after which a request without an end hangs
LENGTHS = 200, 1_200  # prompt tokens
MAX_TOKENS = 24
NUM_PROMPTS = 48
PAUSE_S = 0.1  # of a client that was refused
DISAGREEMENT = "drew other tokens"  # in what the router says of two attempts that differ (`router.attempts`)
NUM_DURATIONS = 50  # the latest ones, to know how long a request takes


class End(StrEnum):
    """How a request ended, as its client sees it."""

    COMPLETE = auto()
    ERROR = auto()  # a definite one
    HANG = auto()  # none by the deadline and the grace
    BROKEN = auto()  # neither an answer nor a definite error
    LEFT = auto()  # the client did


@dataclass
class Verdicts:
    ends: Counter[End] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # definite ones, by code
    wrong_tokens: int = 0  # requests with other tokens than the reference, up to where they ended
    disagreements: int = 0  # requests whose second attempt drew other tokens than the first; also in `errors`
    said: dict[str, str] = field(default_factory=dict)  # the latest message of each kind of error


@dataclass(frozen=True)
class Question:
    prompt: list[int]
    expected: list[int]
    stream: bool
    salt: str

    def body(self) -> dict[str, Any]:
        how = {"model": "tiny", "temperature": 0, "ignore_eos": True, "return_token_ids": True, "stream": self.stream}
        return how | {"prompt": self.prompt, "max_tokens": len(self.expected), "cache_salt": self.salt}


class Bank:
    def __init__(self, reference: Reference, seed: int, num_prompts: int = NUM_PROMPTS) -> None:
        self._random = random.Random(seed)
        first = self._random.randrange(1 << 30)
        prompts = [random_prompt(self._random.randint(*LENGTHS), first + i) for i in range(num_prompts)]
        self._answers = [(prompt, reference.tokens(prompt, MAX_TOKENS)) for prompt in prompts]

    def draw(self) -> Question:
        prompt, expected = self._random.choice(self._answers)
        num_tokens = self._random.randint(1, MAX_TOKENS)
        salt = f"{self._random.getrandbits(64):x}"
        return Question(prompt, expected[:num_tokens], self._random.random() < 0.5, salt)


class Refused(Exception):
    """A definite error, as the client got it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code = str(error["code"])


class Load:
    def __init__(self, http: httpx.AsyncClient, bank: Bank, verdicts: Verdicts) -> None:
        self._http, self._bank, self._verdicts = http, bank, verdicts
        self._durations: deque[float] = deque([0.5], maxlen=NUM_DURATIONS)
        self._stopping = False

    @property
    def typical_s(self) -> float:
        """What a request takes, at the median of the latest."""
        return statistics.median(self._durations)

    @asynccontextmanager
    async def running(self, num_clients: int) -> AsyncIterator[None]:
        """That many clients ask one question after another; the last answers are awaited."""
        self._stopping = False
        async with asyncio.TaskGroup() as clients:
            for _ in range(num_clients):
                clients.create_task(self._client())
            try:
                yield
            finally:
                self._stopping = True

    async def ask(self, num_questions: int) -> None:
        """So many at once, until each has an end."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(num_questions):
                clients.create_task(self._ask(self._bank.draw(), DEADLINE_S + GRACE_S))

    async def leave(self, after_s: float) -> bool:
        """Ask, and close the connection after `after_s`; False if the answer was complete before."""
        return await self._ask(self._bank.draw(), after_s, leaves=True) is End.LEFT

    async def _client(self) -> None:
        while not self._stopping:
            if await self._ask(self._bank.draw(), DEADLINE_S + GRACE_S) is not End.COMPLETE:
                await asyncio.sleep(PAUSE_S)  # as a client that was refused does; not synchronisation

    async def _ask(self, question: Question, timeout_s: float, leaves: bool = False) -> End:
        """Ask, and judge what came of it."""
        verdicts, tokens, began = self._verdicts, list[int](), time.monotonic()
        end = End.COMPLETE
        try:
            async with asyncio.timeout(timeout_s):
                await self._read(question, tokens)
            self._durations.append(time.monotonic() - began)
        except TimeoutError:
            end = End.LEFT if leaves else End.HANG
        except Refused as refused:
            end = End.ERROR
            verdicts.errors[refused.code] += 1
            verdicts.disagreements += DISAGREEMENT in str(refused)
            verdicts.said[refused.code] = str(refused)
        except (httpx.HTTPError, ValueError, KeyError, AssertionError) as broken:
            end = End.BROKEN
            verdicts.said["broken"] = repr(broken)
        expected = question.expected
        verdicts.wrong_tokens += tokens != (expected if end is End.COMPLETE else expected[: len(tokens)])
        verdicts.ends[end] += 1
        return end

    async def _read(self, question: Question, tokens: list[int]) -> None:
        """Add the answer's tokens to `tokens` as they come.

        Raises:
            Refused: a definite error, instead of an answer or in the middle of one.
        """
        async with self._http.stream("POST", "/v1/completions", json=question.body()) as response:
            if response.status_code != 200:
                raise Refused(json.loads(await response.aread())["error"])
            if not question.stream:
                tokens += json.loads(await response.aread())["choices"][0]["token_ids"]
                return
            last: Any = None
            async for last in read_events(response):
                if last == DONE:
                    continue
                if "error" in last:
                    raise Refused(last["error"])
                for choice in last["choices"]:
                    tokens += choice.get("token_ids", [])
            assert last == DONE, "the stream ended without its last event"
