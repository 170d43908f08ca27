"""Prompts that grow: a conversation whose every turn is sent with all that was said before; many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from loadgen.traces.mooncake import TraceRequest
from loadgen.workloads.lengths import Lengths

BLOCK_TOKENS = 16


def blocks_of(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


class Conversation:
    """Answers are part of what follows, as made-up tokens of the length asked for: the real ones are not known when
    a run is planned. So a server can find a turn's question in its cache, but not its own answer."""

    def __init__(self, prefix: list[int], ids: Iterator[int]) -> None:
        self._blocks = list(prefix)
        self._length = len(prefix) * BLOCK_TOKENS
        self._ids = ids

    def turns(
        self, number: int, asked: Lengths, output: Lengths, rng: np.random.Generator, first: Lengths | None = None
    ) -> Iterator[TraceRequest]:
        """`first` is the length of the first question, if it is unlike the others."""
        for turn in range(number):
            self._say((first if first and turn == 0 else asked).draw(rng))
            answer = output.draw(rng)
            yield TraceRequest(0.0, self._length, answer, tuple(self._blocks), BLOCK_TOKENS)
            self._say(answer)

    def _say(self, num_tokens: int) -> None:
        self._length += num_tokens
        self._blocks += islice(self._ids, blocks_of(self._length) - len(self._blocks))


def interleaved(
    start: Callable[[], Iterator[TraceRequest]], active: int, num_requests: int, rng: np.random.Generator
) -> list[TraceRequest]:
    """Take turns, at random, among `active` conversations; a new one starts where one has ended.

    Raises:
        ValueError: `active` is below 1.
    """
    if active < 1:
        raise ValueError(f"active is {active}; at least one conversation must be under way")
    running = [start() for _ in range(min(active, num_requests))]
    requests: list[TraceRequest] = []
    while len(requests) < num_requests:
        which = int(rng.integers(len(running)))
        request = next(running[which], None)
        if request is None:
            running[which] = start()
        else:
            requests.append(request)
    return requests
