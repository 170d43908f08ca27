"""Mooncake-format traces: when requests came, how long they were, and which prefixes they share.

One JSON object a line: `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}`. A hash
id stands for one block of the prompt *given all blocks before it*; the last block may be partial. Texts are not in it,
so blocks are expanded to made-up token ids: the same id always gives the same tokens, different ids different ones.

Source: Mooncake's FAST'25 trace release (https://github.com/kvcache-ai/Mooncake). Knows nothing about arrivals beyond
the recorded ones, or about who replays them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from blake3 import blake3

from loadgen.traces.lines import checked_limit, read_lines

BLOCK_TOKENS = 512  # of every published Mooncake trace
MAX_ARRIVAL_MS = 1e12  # some thirty years: what is beyond is no time of this kind
_MIN_TOKEN = 256  # below are the special tokens of many vocabularies


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request."""

    arrival_ms: float  # from the start of the trace
    input_length: int  # tokens, >= 1
    output_length: int  # tokens, >= 1
    hash_ids: tuple[int, ...] = ()  # one for each block of the prompt, a partial last one included; empty: not recorded
    block_tokens: int = BLOCK_TOKENS

    def __post_init__(self) -> None:
        if self.input_length < 1 or self.output_length < 1 or not 0 <= self.arrival_ms < MAX_ARRIVAL_MS:
            raise ValueError(
                "a request has at least one token in and one out, and comes after the trace began, within "
                f"{MAX_ARRIVAL_MS:g} ms"
            )
        if self.block_tokens < 1:
            raise ValueError(f"block_tokens is {self.block_tokens}; a block has at least one token")
        if self.hash_ids and len(self.hash_ids) != -(-self.input_length // self.block_tokens):
            raise ValueError(
                f"{len(self.hash_ids)} hash ids for {self.input_length} tokens; there is one for each block of "
                f"{self.block_tokens}, so there must be {-(-self.input_length // self.block_tokens)}"
            )

    @property
    def full_ids(self) -> tuple[int, ...]:
        """Of the full blocks: what a prefix cache can hold."""
        return self.hash_ids[: self.input_length // self.block_tokens]


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_mooncake(path: Path, block_tokens: int = BLOCK_TOKENS, limit: int | None = None) -> list[TraceRequest]:
    """The requests of a file in order of arrival, the first `limit` of them.

    Raises:
        ValueError: a line is not of the format; says which. Or `limit` or `block_tokens` is below 1.
        OSError: the file cannot be read.
    """
    limit = checked_limit(limit)

    def made(line: _Line) -> TraceRequest:
        output_length = max(1, line.output_length)
        return TraceRequest(line.timestamp, line.input_length, output_length, tuple(line.hash_ids), block_tokens)

    requests = read_lines(path, _Line, made)
    return sorted(requests, key=lambda each: each.arrival_ms)[:limit]


def write_mooncake(requests: Sequence[TraceRequest]) -> Iterator[str]:
    """The lines of a file that `read_mooncake` reads."""
    for each in requests:
        yield json.dumps(
            {
                "timestamp": round(each.arrival_ms),
                "input_length": each.input_length,
                "output_length": each.output_length,
                "hash_ids": list(each.hash_ids),
            }
        )


def quantum_ms(requests: Sequence[TraceRequest]) -> float:
    """How coarse the timestamps are: the median gap between different ones, if most of them are shared; else 0.

    Replaying coarse timestamps as they are makes bursts that never were; jitter them by this much.
    """
    times = sorted({each.arrival_ms for each in requests})
    if len(times) < 2 or len(times) > len(requests) / 2:
        return 0.0
    gaps = sorted(after - before for before, after in pairwise(times))
    return gaps[len(gaps) // 2]


class TokenBlocks:
    """Expands hash ids to token ids, the same in every process."""

    def __init__(self, vocabulary_size: int, seed: int = 0) -> None:
        """
        Args:
            vocabulary_size: token ids are from 256 (or 0, if it is small) up to this.
        """
        self._low = _MIN_TOKEN if vocabulary_size > 4 * _MIN_TOKEN else 0
        self._high = vocabulary_size
        self._seed = seed

    def block(self, hash_id: int, num_tokens: int = BLOCK_TOKENS) -> list[int]:
        """The block's tokens; a partial block is a prefix of the full one."""
        name = f"{self._seed}:{hash_id}".encode()
        numbers = np.frombuffer(blake3(name).digest(4 * num_tokens), np.dtype("<u4"))
        tokens: list[int] = (numbers % np.uint32(self._high - self._low) + np.uint32(self._low)).tolist()
        return tokens

    def prompt(self, request: TraceRequest, fallback_id: int = 0) -> list[int]:
        """The whole prompt. A request without hash ids shares nothing: its ids come from `fallback_id`, below zero."""
        size = request.block_tokens
        count = -(-request.input_length // size)
        ids = request.hash_ids or tuple(-1 - (fallback_id << 24) - i for i in range(count))
        tokens = [token for hash_id in ids for token in self.block(hash_id, size)]
        return tokens[: request.input_length]
