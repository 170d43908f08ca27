"""What a server says of the model it serves."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority, Files

from loadgen.arrivals import ClosedLoop
from loadgen.client.about import is_simulated
from loadgen.client.config import RunConfig


@contextmanager
def server(status: int, body: bytes, files: Files | None = None) -> Iterator[tuple[str, list[str]]]:
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
        if files is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(files.cert, files.key)
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"{'https' if files else 'http'}://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()


def config(base_url: str) -> RunConfig:
    return RunConfig(base_url=base_url, model="m", workload="independent", arrivals=ClosedLoop(1))


@pytest.mark.parametrize(
    ("status", "body", "simulated"),
    [
        (200, b'{"data": [{"id": "m", "simulated": true, "object": "model"}]}', True),
        (200, b'{"data": [{"id": "m"}, {"id": "other", "simulated": true}]}', False),
        (200, b'{"data": []}', None),
        (200, b"hello", None),
        (404, b'{"data": [{"id": "m", "simulated": true}]}', None),
    ],
)
def test_only_who_says_so_is_simulated_and_who_says_nothing_is_unknown(
    status: int, body: bytes, simulated: bool | None
) -> None:
    with server(status, body) as (url, asked):
        for base_url in (url, f"{url}/v1/"):
            assert is_simulated(config(base_url), {"authorization": "Bearer key"}) is simulated
    assert asked == ["/v1/models Bearer key"] * 2


def test_a_server_that_is_not_there_says_nothing() -> None:
    assert is_simulated(config("http://127.0.0.1:1"), {}) is None


def test_a_server_that_speaks_no_http_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert is_simulated(config(f"http://127.0.0.1:{listening.getsockname()[1]}"), {}) is None


def test_a_private_authority_is_believed_if_it_is_given(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("127.0.0.1")
    with server(200, b'{"data": [{"id": "m", "simulated": true}]}', files) as (url, _):
        assert is_simulated(config(url), {}, files.ca) is True
        assert is_simulated(config(url), {}) is None
