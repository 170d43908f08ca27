"""Our own request log: what a user records of their traffic in order to replay it. One JSON object a line:

    {"arrival_ms": 1234.5, "input_tokens": 812, "output_tokens": 96,
     "block_tokens": 16, "hash_ids": [3, 4, 9, ...], "label": "chat"}

`arrival_ms` counts from the log's start or from 1970: only differences matter. `hash_ids` (one for each `block_tokens`
of the prompt, the partial last one included) may be left out: then nothing is shared. `label` names a class of traffic
for separate figures. Logs hold no text, so they may be shared where prompts may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from loadgen.traces.lines import checked_limit, read_lines
from loadgen.traces.mooncake import TraceRequest


class LogLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    arrival_ms: float
    input_tokens: int
    output_tokens: int
    block_tokens: int = 16
    hash_ids: tuple[int, ...] = ()
    label: str = ""


def read_request_log(path: Path, limit: int | None = None) -> tuple[list[TraceRequest], list[str]]:
    """The requests in order of arrival, the first at 0 ms, and the label of each.

    Raises:
        ValueError: a line is not of the format; says which. Or `limit` is below 1.
        OSError: the file cannot be read.
    """
    limit = checked_limit(limit)
    lines = sorted(read_lines(path, LogLine, _checked), key=lambda line: line.arrival_ms)[:limit]
    start_ms = lines[0].arrival_ms if lines else 0.0
    return [_request(line, line.arrival_ms - start_ms) for line in lines], [line.label for line in lines]


def write_request_log(requests: Sequence[TraceRequest], labels: Sequence[str]) -> Iterator[bytes]:
    """The lines of a file that `read_request_log` reads."""
    for request, label in zip(requests, labels, strict=True):
        line = LogLine(
            arrival_ms=request.arrival_ms,
            input_tokens=request.input_length,
            output_tokens=request.output_length,
            block_tokens=request.block_tokens,
            hash_ids=request.hash_ids,
            label=label,
        )
        yield msgspec.json.encode(line) + b"\n"


def _checked(line: LogLine) -> LogLine:
    _request(line, 0.0)
    return line


def _request(line: LogLine, arrival_ms: float) -> TraceRequest:
    return TraceRequest(arrival_ms, line.input_tokens, line.output_tokens, line.hash_ids, line.block_tokens)
