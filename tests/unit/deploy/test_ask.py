"""The question's answer is streamed, measured and summed up; anything less than a whole answer is an error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deploy.ask import Answer, AskError, ask, chat_body, summary

REPORT = {
    "prefill_worker": "prefill-a",
    "decode_worker": "decode-b",
    "reason": "remote",
    "prompt_tokens": {
        "prefill-a": {"computed": 30, "cached": 10, "transferred": 0},
        "decode-b": {"computed": 0, "cached": 0, "transferred": 40},
    },
    "transfer_bytes": 1_234_567,
    "transfer_ms": 2.5,
    "exposed_ms": 0.5,
}
START = 'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
HELLO = 'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\ndata: {"choices": [{"delta": {"content": "lo"}}]}\n\n'
END = 'data: {"choices": [], "usage": {"completion_tokens": 2}, "diptych": {"reason": "local"}}\n\ndata: [DONE]\n\n'


@contextmanager
def door(status: int, body: str) -> Iterator[str]:
    """A door that gives everybody the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def question() -> dict[str, object]:
    return chat_body("m", "Hello?", 5)


def test_a_whole_answer_is_streamed_and_measured() -> None:
    text: list[str] = []
    with door(200, START + HELLO + END) as url:
        answer = ask(url, question(), text.append)
    assert text == ["Hel", "lo"]
    assert answer.num_tokens == 2
    assert answer.last_ms >= answer.ttft_ms > 0
    assert answer.report == {"reason": "local"}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, '{"error": {"message": "no decode worker"}}', "HTTP 503.*no decode worker"),
        (200, START + HELLO, "broke off"),
        (200, START + 'data: {"error": {"message": "a leg failed"}}\n\n', "a leg failed"),
    ],
)
def test_anything_less_is_an_error(status: int, body: str, reason: str) -> None:
    with door(status, body) as url, pytest.raises(AskError, match=reason):
        ask(url, question(), lambda _: None)


def test_nobody_there_is_an_error() -> None:
    with door(200, "") as url:
        pass
    with pytest.raises(AskError, match="connection failed"):
        ask(url, question(), lambda _: None)


def test_the_summary_says_which_worker_did_what() -> None:
    answer = Answer(ttft_ms=50.0, last_ms=150.0, usage={"completion_tokens": 11}, report=REPORT)
    text = "\n".join(summary(answer))
    assert "prefill-a" in text
    assert "30 computed, 10 cached" in text
    assert "40 transferred; 11 tokens generated" in text
    assert "1,234,567 bytes in 2.5 ms" in text
    assert "10.0 ms (mean of 11 tokens)" in text


def test_the_summary_says_when_nothing_was_moved_and_why() -> None:
    report = REPORT | {"prefill_worker": None, "prompt_tokens": {"decode-b": {"computed": 4}}, "reason": "short prompt"}
    text = "\n".join(summary(Answer(report=report)))
    assert "none, decode computed the prompt itself: short prompt" in text
