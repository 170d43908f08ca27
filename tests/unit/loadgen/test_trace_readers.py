"""Readers of public trace formats, on small files written here after their documentation, and on real ones if there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.traces.azure import read_azure
from loadgen.traces.bailian import read_bailian
from loadgen.traces.burstgpt import read_burstgpt
from loadgen.traces.mooncake import TraceRequest, read_mooncake
from loadgen.traces.request_log import read_request_log, write_request_log
from loadgen.traces.sharegpt import read_sharegpt

SHARED = Path(__file__).resolve().parents[4] / "shared/data/traces"


def written(folder: Path, content: str) -> Path:
    path = folder / "trace"
    path.write_text(content, encoding="utf-8")
    return path


def test_azure(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n"
        "2023-11-16 18:17:03.5,0,8\n",
    )
    first, second = read_azure(path)
    assert (first.input_length, first.output_length, first.hash_ids) == (4808, 10, ())
    assert (first.arrival_ms, second.arrival_ms) == (0, pytest.approx(52.0, abs=1e-3))
    assert read_azure(path, limit=1) == [first]


def test_azure_2024_times_with_a_zone(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,1,1\n",
    )
    assert read_azure(path)[1].arrival_ms == pytest.approx(990.07, abs=1e-3)


@pytest.mark.skipif(not SHARED.exists(), reason="the public traces are not here")
@pytest.mark.parametrize(("name", "number"), [("code", 8_819), ("conv", 19_366)])
def test_azure_as_published(name: str, number: int) -> None:
    requests = read_azure(SHARED / f"azure/AzureLLMInferenceTrace_{name}.csv")
    assert len(requests) == number
    assert 3_000_000 < requests[-1].arrival_ms < 4_000_000  # an hour


def test_bailian(tmp_path: Path) -> None:
    lines = [
        {"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.114, "input_length": 40, "output_length": 132}
        | {"type": "text", "turn": 2, "hash_ids": [1089, 1090, 6326]},
        {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 99, "output_length": 0, "type": "file"}
        | {"turn": 1, "hash_ids": [1, 2]},  # fewer ids than the length needs
    ]
    path = written(tmp_path, "\n".join(map(json.dumps, lines)))
    assert read_bailian(path) == [
        TraceRequest(500, 32, 1, (1, 2), 16),
        TraceRequest(61_114, 40, 132, (1089, 1090, 6326), 16),
    ]


def test_burstgpt(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,0,1087,Conversation log\n"  # a failed call
        "118.5,GPT-4,417.0,276,693,API log\n",
    )
    assert read_burstgpt(path) == [TraceRequest(0, 472, 18), TraceRequest(113_500, 417, 276)]


def test_sharegpt(tmp_path: Path) -> None:
    said = [("human", "x" * 80), ("gpt", "y" * 40), ("human", "z" * 100), ("gpt", "w" * 4)]
    turns = [{"from": speaker, "value": value} for speaker, value in said]
    path = written(tmp_path, json.dumps([{"id": "a", "conversations": turns}, {"id": "b", "conversations": turns[1:]}]))
    first, second, other = read_sharegpt(path)
    assert (first.input_length, first.output_length) == (20, 10)
    assert (second.input_length, second.output_length) == (55, 1)
    assert second.hash_ids[: len(first.hash_ids)] == first.hash_ids
    assert not set(other.hash_ids) & set(second.hash_ids)
    assert next(iter(read_sharegpt(path, count_tokens=len))).input_length == 80


def test_request_log_reads_what_it_writes(tmp_path: Path) -> None:
    requests = [TraceRequest(0, 20, 3, (5, 9), 16), TraceRequest(12.5, 8, 1)]
    labels = ["chat", ""]
    path = tmp_path / "log"
    path.write_bytes(b"".join(write_request_log(requests, labels)))
    read, read_labels = read_request_log(path)
    assert (read, read_labels) == ([requests[0], TraceRequest(12.5, 8, 1, (), 512)], labels)


def test_a_request_log_may_count_from_1970(tmp_path: Path) -> None:
    lines = [{"arrival_ms": 1.7e12 + at, "input_tokens": 5, "output_tokens": 5} for at in (250, 0)]
    requests, _ = read_request_log(written(tmp_path, "\n".join(map(json.dumps, lines))))
    assert [each.arrival_ms for each in requests] == [0, 250]


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize(
    "reader", [read_azure, read_bailian, read_burstgpt, read_mooncake, read_request_log, read_sharegpt]
)
def test_a_limit_is_none_or_some(reader: Callable[..., object], limit: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        reader(written(tmp_path, ""), limit=limit)


@pytest.mark.parametrize(
    ("reader", "content", "said"),
    [
        (read_azure, "TIMESTAMP,ContextTokens\n", "GeneratedTokens"),
        (read_azure, "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2"),
        (read_burstgpt, "Timestamp,Request tokens,Response tokens\n1,2,3\n2,-4,3\n", "line 3"),
        (read_burstgpt, "Timestamp,Request tokens,Response tokens\n1,2\n", "line 2"),
        (read_bailian, '{"timestamp": 1}\n', "line 1"),
        (read_request_log, '{"arrival_ms": 1, "input_tokens": 40, "output_tokens": 1, "hash_ids": [1]}', "line 1"),
        (read_request_log, '{"arrival_ms": 1, "input_tokens": 4, "output_tokens": 1, "prompt": "x"}', "line 1"),
        (read_sharegpt, '{"conversations": []}', "trace"),
        (read_azure, "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.5,inf,1\n", "line 2"),
        (read_azure, "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.5,1,nan\n", "line 2"),
        (read_burstgpt, "Timestamp,Request tokens,Response tokens\n1,inf,3\n", "line 2"),
        (read_burstgpt, "Timestamp,Request tokens,Response tokens\ninf,2,3\n", "line 2"),
        (read_burstgpt, "Timestamp,Request tokens,Response tokens\n1,2,3\nnan,2,3\n", "line 3"),
        (read_burstgpt, "Timestamp,Request tokens,Response tokens\n1,2,3\n1e10,2,3\n", "after the trace began"),
        (read_bailian, '{"timestamp": 1e300, "input_length": 1, "output_length": 1}\n', "line 1"),
        (read_mooncake, '{"timestamp": 1e12, "input_length": 1, "output_length": 1}\n', "line 1"),
        (read_request_log, '{"arrival_ms": 1, "input_tokens": 4, "output_tokens": 1, "block_tokens": 0}', "line 1"),
    ],
)
def test_errors_say_where(reader: object, content: str, said: str, tmp_path: Path) -> None:
    assert callable(reader)
    with pytest.raises(ValueError, match=said):
        reader(written(tmp_path, content))
