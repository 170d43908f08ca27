"""What a server says of the model it serves."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadgen.arrivals import ClosedLoop
from loadgen.client.about import is_simulated
from loadgen.client.config import RunConfig


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Models(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('authorization')}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Models) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()


def config(base_url: str) -> RunConfig:
    return RunConfig(base_url=base_url, model="m", workload="independent", arrivals=ClosedLoop(1))


@pytest.mark.parametrize(
    ("status", "body", "simulated"),
    [
        (200, b'{"data": [{"id": "m", "simulated": true, "object": "model"}]}', True),
        (200, b'{"data": [{"id": "m"}, {"id": "other", "simulated": true}]}', False),
        (200, b'{"data": []}', False),
        (200, b"hello", False),
        (404, b'{"data": [{"id": "m", "simulated": true}]}', False),
    ],
)
def test_only_who_says_so_is_simulated(status: int, body: bytes, simulated: bool) -> None:
    with server(status, body) as (url, asked):
        for base_url in (url, f"{url}/v1/"):
            assert is_simulated(config(base_url), {"authorization": "Bearer key"}) is simulated
    assert asked == ["/v1/models Bearer key"] * 2


def test_a_server_that_is_not_there_says_nothing() -> None:
    assert not is_simulated(config("http://127.0.0.1:1"), {})
