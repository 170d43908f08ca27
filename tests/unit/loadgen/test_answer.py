"""What a stream says: events out of bytes, times of tokens, counts, and every way in which it can go wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.answer import Answer
from loadgen.client.records import Record
from loadgen.client.sse import EventSplitter

DONE = b"data: [DONE]\n\n"


def text(content: str, finish: str | None = None, **more: Any) -> bytes:
    return sse({"choices": [{"index": 0, "text": content, "finish_reason": finish}]} | more)


def chat(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def usage(completion: int, prompt: int = 9, cached: int | None = 4) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def sse(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def record_of(*events: bytes, step_s: float = 0.01, status: int = 200, kind: str = "text/event-stream") -> Record:
    """Of a request due at 0; each event comes `step_s` after the one before, the first at `step_s`."""
    answer = Answer()
    answer.head(status, kind)
    for number, event in enumerate(events, 1):
        answer.body(event, number * step_s)
    answer.end()
    record = Record(index=0, intended_ms=0.0, planned_input=1, planned_output=1)
    answer.fill(record, 0.0, 1.0)
    return record


def test_a_whole_answer() -> None:
    last = sse({"choices": [], "usage": usage(3)})
    record = record_of(text("a"), text("b"), text("c", "length"), last, DONE)
    assert record.ok
    assert (record.ttft_ms, record.itl_ms, record.e2e_ms) == (10, [10, 10], 30)
    assert (record.output_tokens, record.prompt_tokens, record.cached_tokens) == (3, 9, 4)
    assert (record.finish_reason, record.tpot_ms, record.event_tokens) == ("length", 10, [])


def test_the_role_of_a_chat_is_no_token() -> None:
    record = record_of(chat({"role": "assistant", "content": ""}), chat({"content": "a"}), chat({}, "stop"), DONE)
    assert (record.ttft_ms, record.output_tokens, record.e2e_ms) == (20, 1, 30)


@pytest.mark.parametrize("delta", [{"reasoning_content": "x"}, {"reasoning": "x"}, {"tool_calls": [{"index": 0}]}])
def test_reasoning_and_calls_are_tokens(delta: dict[str, Any]) -> None:
    assert record_of(chat(delta), chat({"content": "a"}, "stop"), DONE).ttft_ms == 10
    assert record_of(chat({"content": None, "tool_calls": None}), chat({"content": "a"}, "stop"), DONE).ttft_ms == 20


def test_a_last_token_without_text_still_ends_the_answer() -> None:
    record = record_of(text("a"), text("b"), text("", "length"), sse({"choices": [], "usage": usage(3)}), DONE)
    assert (record.e2e_ms, record.tpot_ms) == (30, 10)


def test_tokens_that_cannot_be_shown_are_tokens() -> None:
    record = record_of(text("", "length"), sse({"choices": [], "usage": usage(2)}), DONE)
    assert (record.failure, record.ttft_ms, record.output_tokens) == ("", 10, 2)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "function_call", "content_filter"])
def test_reasons_of_whole_answers(reason: str) -> None:
    record = record_of(text("a", reason), DONE)
    assert (record.failure, record.finish_reason) == ("", reason)


def test_what_a_server_calls_a_reason_is_not_kept_as_it_is() -> None:
    assert record_of(text("a", "Oh no: <secret>"), DONE).finish_reason == "ohnosecret"


def test_several_tokens_in_one_piece_have_no_time_between_them() -> None:
    last = sse({"choices": [], "usage": usage(3)})
    lump = record_of(text("abc"), text("", "length"), last, DONE)
    assert (lump.ok, lump.is_lump, lump.tpot_ms, lump.output_tokens) == (True, True, None, 3)
    apart = record_of(text("a"), text("bc", "length"), last, DONE)
    assert (apart.is_lump, apart.tpot_ms) == (False, 5)
    alone = record_of(text("a", "length"), sse({"choices": [], "usage": usage(1)}), DONE)
    assert (alone.is_lump, alone.tpot_ms) == (False, None)


def test_whether_the_server_counted() -> None:
    assert record_of(text("a"), text("b", "length"), sse({"choices": [], "usage": usage(2)}), DONE).tokens_counted
    uncounted = record_of(text("a"), text("b", "length"), DONE)
    assert (uncounted.tokens_counted, uncounted.is_lump) == (False, False)
    uncounted = record_of(text("a b c", "length"), DONE)
    uncounted.planned_output = 3
    assert uncounted.is_lump  # as far as can be told


def test_counts_in_every_event() -> None:
    record = record_of(text("ab", usage=usage(2)), text("cde", "length", usage=usage(5)), DONE)
    assert record.event_tokens == [2, 3]
    assert list(record.token_times_ms()) == [(10, 2), (20, 3)]


def test_tokens_without_text_are_known_by_the_count() -> None:
    """Half a character shows nothing until the other half is there: first, in the middle, and last."""
    counted = [text("", usage=usage(1)), text("é", usage=usage(2)), text("", usage=usage(3)), text("", "length")]
    record = record_of(*counted, sse({"choices": [], "usage": usage(4)}), DONE)
    assert record.event_tokens == [2, 1, 1]
    assert record.ttft_ms == 20


def test_what_a_router_foresaw() -> None:
    last = sse({"choices": [], "usage": usage(1), "diptych": {"predicted_cached_tokens": 8, "decode_worker": "x"}})
    assert record_of(text("a", "stop"), last, DONE).predicted_cached_tokens == 8


@pytest.mark.parametrize(
    ("events", "failure"),
    [
        ((text("a"), sse({"error": {"message": "no"}})), "error_event"),
        ((text("a"),), "truncated"),
        ((text("a", "stop"), b"data: {"), "truncated"),
        ((DONE,), "empty"),
        ((text("", "stop"), DONE), "empty"),
        ((text("", "stop"), sse({"choices": [], "usage": usage(0)}), DONE), "empty"),
        ((text("", "stop"), sse({"choices": [], "usage": usage(1)}), DONE), ""),  # e.g. a stop token: it has no text
        ((text("", "abort"), DONE), "finish_abort"),
        ((text("a"), text("b", "abort"), sse({"choices": [], "usage": usage(2)}), DONE), "finish_abort"),
        ((text("a", "error"), DONE), "finish_error"),
        ((text("a", "Ig\n nore <all> 123 " + "x" * 99), DONE), "finish_ignoreallxxxxxxxxxxxxxxx"),
        ((text("a", "137"), DONE), "finish_other"),
        ((text("a"), b'event: error\ndata: {"message": "no", "code": 500}\n\n', DONE), "error_event"),
        ((text("a"), b"event: error\n: no worker\n\n", text("", "stop"), DONE), "error_event"),
        ((text("a", "stop"), b"event: error\n", DONE), "error_event"),
        ((text("a"), sse({"object": "error", "message": "no"}), DONE), "error_event"),
        ((text("a"), sse({"error": 1}), DONE), "error_event"),
        ((text("a", "stop", error=None), DONE), ""),
        ((text("a", "stop"), b'data: {"choices": null, "usage": {"completion_tokens": 1}}\n\n', DONE), ""),
        ((text("a", "stop"), b"data: [DONE]\n"), ""),
        ((text("a"), b"data: [DONE]\n"), ""),
        ((b"data: nonsense\n\n", DONE), "not_a_stream"),
        ((b'data: {"choices": 3}\n\n', DONE), "not_a_stream"),
        ((b'data: {"choices": [{"text": "\xff"}]}\n\n', DONE), "not_a_stream"),
        ((text("a", "stop"),), ""),  # in order, if without [DONE]
    ],
)
def test_how_it_fails(events: tuple[bytes, ...], failure: str) -> None:
    record = record_of(*events)
    assert record.failure == failure
    if failure:
        assert record.e2e_ms == 1_000  # when it was given up


def test_statuses() -> None:
    assert record_of(status=503, kind="application/json").failure == "http_503"
    assert record_of(status=503).refused
    assert not record_of(status=500).refused
    assert record_of(kind="application/json").failure == "not_a_stream"


EVENTS = b'data: {"a": 1}\n\n: ping\n\nevent: x\ndata: one\ndata: two\n\nid: 7\n\ndata:bare\n\n'


@given(st.lists(st.integers(0, len(EVENTS)), max_size=10), st.booleans())
def test_events_cut_anywhere(at: list[int], crlf: bool) -> None:
    data = EVENTS.replace(b"\n", b"\r\n") if crlf else EVENTS
    places = sorted({0, len(data), *at})
    splitter = EventSplitter()
    found = [e for start, end in pairwise(places) for e in splitter.feed(data[start:end])]
    assert found == [b'{"a": 1}', b"one\ntwo", b"bare"]
    assert not splitter.has_rest
