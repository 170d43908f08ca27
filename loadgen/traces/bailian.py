"""Qwen-Bailian usage traces: one JSON object a line with `chat_id`, `parent_chat_id` (-1 for a first turn), `timestamp`
in seconds, `input_length`, `output_length`, `type`, `turn` and `hash_ids`, one for each 16 tokens of the prompt.

There a hash is of a block alone, not of the blocks before it: the same 16 tokens may stand behind different prefixes.
Expanding equal ids to equal tokens keeps both meanings.
Source: https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadgen.traces.lines import checked_limit, read_lines
from loadgen.traces.mooncake import TraceRequest

BLOCK_TOKENS = 16


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_bailian(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """The requests in order of arrival.

    Raises:
        ValueError: a line is not of the format; says which. Or `limit` is below 1.
        OSError: the file cannot be read.
    """
    limit = checked_limit(limit)
    return sorted(read_lines(path, _Line, _request), key=lambda each: each.arrival_ms)[:limit]


def _request(line: _Line) -> TraceRequest:
    """Where ids and length do not agree (an answer's tail, a rounding), what the ids cover counts."""
    ids, length = tuple(line.hash_ids), max(1, line.input_length)
    if ids:
        ids = ids[: -(-length // BLOCK_TOKENS)]
        length = min(length, len(ids) * BLOCK_TOKENS)
    return TraceRequest(line.timestamp * 1e3, length, max(1, line.output_length), ids, BLOCK_TOKENS)
