"""Made-up traffic with the shapes that matter to a prefix cache. Each generator is a frozen struct of its parameters;
`make` draws requests from a seeded generator of random numbers and takes block ids from a shared counter, so no prompt
ever repeats another beyond what its shape says, also when several generators are mixed.

Shared stretches are whole blocks of `BLOCK_TOKENS`: lengths of system prompts and documents are rounded up to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Protocol

import msgspec
import numpy as np

from loadgen.traces.mooncake import TraceRequest
from loadgen.workloads.conversations import BLOCK_TOKENS, Conversation, blocks_of, interleaved
from loadgen.workloads.lengths import Lengths

Ids = Iterator[int]
Rng = np.random.Generator


class Generator(Protocol):
    def make(self, num_requests: int, rng: Rng, ids: Ids) -> list[TraceRequest]: ...


class Independent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts that share nothing."""

    name: ClassVar[str] = "independent"
    input: Lengths = Lengths(512, 512)
    output: Lengths = Lengths(128, 128)

    def make(self, num_requests: int, rng: Rng, ids: Ids) -> list[TraceRequest]:
        return [_fresh([], self.input.draw(rng), self.output.draw(rng), ids) for _ in range(num_requests)]


class PrefixShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fixed share of each prompt is common to its group; the rest is its own."""

    name: ClassVar[str] = "prefix-share"
    share: float = 0.5
    groups: int = 1
    input: Lengths = Lengths(512, 512)
    output: Lengths = Lengths(128, 128)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.groups < 1:
            raise ValueError("share is from 0 to 1, and there is at least one group")

    def make(self, num_requests: int, rng: Rng, ids: Ids) -> list[TraceRequest]:
        common: list[list[int]] = [[] for _ in range(self.groups)]
        requests = []
        for _ in range(num_requests):
            length, output = self.input.draw(rng), self.output.draw(rng)
            group = common[int(rng.integers(self.groups))]
            blocks = int(self.share * length) // BLOCK_TOKENS
            group += islice(ids, max(0, blocks - len(group)))
            requests.append(_fresh(group[:blocks], length - blocks * BLOCK_TOKENS, output, ids))
        return requests


class SharedSystem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A few system prompts, some more popular than others (Zipf), each with a question of its own behind it."""

    name: ClassVar[str] = "shared-system"
    system: Lengths = Lengths(1024, 1024)
    systems: int = 8
    popularity: float = 1.0  # Zipf's exponent; 0: all alike
    user: Lengths = Lengths(50, 200)
    output: Lengths = Lengths(128, 128)

    def __post_init__(self) -> None:
        if self.systems < 1 or self.popularity < 0:
            raise ValueError("there is at least one system prompt, and popularity is not below 0")

    def make(self, num_requests: int, rng: Rng, ids: Ids) -> list[TraceRequest]:
        prompts = [list(islice(ids, blocks_of(self.system.draw(rng)))) for _ in range(self.systems)]
        weights = np.arange(1, self.systems + 1, dtype=np.float64) ** -self.popularity
        chosen = rng.choice(self.systems, num_requests, p=weights / weights.sum())
        return [_fresh(prompts[which], self.user.draw(rng), self.output.draw(rng), ids) for which in chosen]


class Sessions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chats of several turns: each prompt is the whole conversation so far. `active` of them are under way at a time,
    so that about so many requests lie between two turns of one."""

    name: ClassVar[str] = "sessions"
    system: Lengths = Lengths(256, 256)
    turns: Lengths = Lengths(2, 8)
    user: Lengths = Lengths(30, 300)
    output: Lengths = Lengths(128, 128)
    active: int = 32

    def make(self, num_requests: int, rng: Rng, ids: Ids) -> list[TraceRequest]:
        system = list(islice(ids, blocks_of(self.system.draw(rng))))

        def start() -> Iterator[TraceRequest]:
            return Conversation(system, ids).turns(self.turns.draw(rng), self.user, self.output, rng)

        return interleaved(start, self.active, num_requests, rng)


class Agents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tool agents: a long description of the tools that all share, a task, then steps of a short call and the tool's
    output, which may be long."""

    name: ClassVar[str] = "agents"
    tools: Lengths = Lengths(2048, 2048)
    task: Lengths = Lengths(100, 400)
    steps: Lengths = Lengths(3, 12)
    tool_output: Lengths = Lengths(median=300, sigma=1.0)
    output: Lengths = Lengths(20, 120)
    active: int = 16

    def make(self, num_requests: int, rng: Rng, ids: Ids) -> list[TraceRequest]:
        tools = list(islice(ids, blocks_of(self.tools.draw(rng))))

        def start() -> Iterator[TraceRequest]:
            run = Conversation(tools, ids)
            return run.turns(self.steps.draw(rng), self.tool_output, self.output, rng, first=self.task)

        return interleaved(start, self.active, num_requests, rng)


class Documents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several independent questions about each of many long documents."""

    name: ClassVar[str] = "documents"
    document: Lengths = Lengths(4096, 16384)
    questions: Lengths = Lengths(2, 5)
    question: Lengths = Lengths(20, 80)
    output: Lengths = Lengths(100, 300)
    active: int = 8

    def make(self, num_requests: int, rng: Rng, ids: Ids) -> list[TraceRequest]:
        def start() -> Iterator[TraceRequest]:
            text = list(islice(ids, blocks_of(self.document.draw(rng))))
            for _ in range(self.questions.draw(rng)):
                yield _fresh(text, self.question.draw(rng), self.output.draw(rng), ids)

        return interleaved(start, self.active, num_requests, rng)


GENERATORS: dict[str, type[Generator]] = {
    kind.name: kind for kind in (Independent, PrefixShare, SharedSystem, Sessions, Agents, Documents)
}


def _fresh(prefix: list[int], own_tokens: int, output: int, ids: Ids) -> TraceRequest:
    """A prompt of a prefix of whole blocks and so many tokens of its own."""
    length = max(1, len(prefix) * BLOCK_TOKENS + own_tokens)
    own = islice(ids, blocks_of(length) - len(prefix))
    return TraceRequest(0.0, length, output, (*prefix, *own), BLOCK_TOKENS)
