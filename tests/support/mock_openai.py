"""A mock OpenAI-compatible server on a real socket, for tests and figures of the load generator: `python
tests/support/mock_openai.py '{"ttft_ms": 20}'` prints one line with its port and serves until SIGTERM.

It does no inference: tokens come on a timetable. It is written straight on asyncio's protocols so that it costs less
than the client it is there to test. `GET /seen` says what arrived.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from functools import partial
from typing import Any, cast

import msgspec
import uvloop

BLOCK = 16  # tokens of a block of its make-believe prefix cache
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Mock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    port: int = 0
    ttft_ms: float = 0.0
    itl_ms: float = 0.0  # 0: all tokens at once
    faults: dict[str, int] = {}  # kind -> every so many requests, see `Connection.answer`
    tokens_per_event: int = 1
    prefix_cache: bool = False
    one_write: bool = False  # of all events that are due, instead of one write (and so one segment) each


class Body(msgspec.Struct, frozen=True, kw_only=True):
    max_tokens: int = 16
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: dict[str, bool] = {}
    prompt: Any = None
    messages: Any = None


class Seen:
    """What arrived, over all connections."""

    def __init__(self, config: Mock) -> None:
        self.config = config
        self.kinds: Counter[str] = Counter()
        self.connections = 0
        self.requests = 0
        self.tokens = 0
        self.prompts: set[int] = set()
        self.blocks: set[int] = set()
        self.body: Any = None  # the last one
        self.headers = ""

    def cached_tokens(self, prompt: list[int]) -> int:
        """Of a prompt's whole blocks but the last token, those that an earlier prompt began with."""
        chain, cached, hit = 0, 0, True
        for end in range(BLOCK, len(prompt) + 1, BLOCK):
            chain = hash((chain, *prompt[end - BLOCK : end]))
            hit = hit and chain in self.blocks and end < len(prompt)
            cached = end if hit else cached
            self.blocks.add(chain)
        return cached

    def report(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "connections": self.connections,
            "tokens": self.tokens,
            "distinct_prompts": len(self.prompts),
            "faults": dict(self.kinds),
            "last_body": self.body,
            "last_headers": self.headers,
        }


class Connection(asyncio.Protocol):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.config = seen.config
        self.loop = asyncio.get_running_loop()
        self.received = bytearray()
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self.seen.connections += 1

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].decode("latin-1")
            lines = head.split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            size = end + 4 + int(fields.get("content-length", 0))
            if len(self.received) < size:
                return
            body = bytes(self.received[end + 4 : size])
            del self.received[:size]
            self.request(lines[0].split(" ")[1], head, body)

    def request(self, path: str, head: str, raw: bytes) -> None:
        if path == "/seen":
            self.json(200, self.seen.report())
        elif path == "/v1/models":
            self.json(200, {"object": "list", "data": [{"id": "mock", "object": "model"}]})
        else:
            self.seen.headers = head
            self.generate(path, raw)

    def generate(self, path: str, raw: bytes) -> None:
        body, seen = msgspec.json.decode(raw, type=Body), self.seen
        seen.requests += 1
        seen.body = msgspec.json.decode(raw) if len(raw) < 65_536 else None
        seen.prompts.add(hash(msgspec.json.encode(body.messages if body.prompt is None else body.prompt)))
        prompt = body.prompt if isinstance(body.prompt, list) else str(body.prompt or body.messages).split()
        cached = seen.cached_tokens(prompt) if self.config.prefix_cache else 0
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": cached}}
        fault = next((kind for kind, every in self.config.faults.items() if seen.requests % every == 0), "")
        if fault:
            seen.kinds[fault] += 1
        self.answer(path, body, usage, fault)

    def answer(self, path: str, body: Body, usage: dict[str, Any], fault: str) -> None:
        """Faults: http_NNN, silent, drop, cut (half of the stream), error_event, no_done, empty, close_idle, abort
        (as vLLM does when it gives a request up)."""
        if fault.startswith("http_"):
            self.json(int(fault.removeprefix("http_")), {"error": {"message": "as asked", "code": fault}})
            return
        if fault == "silent":
            return
        if fault == "drop":
            self.transport.abort()
            return
        num_tokens = 0 if fault == "empty" else body.max_completion_tokens or body.max_tokens
        events = self.events(path, body, usage, num_tokens)
        self.seen.tokens += num_tokens
        if not body.stream:
            self.json(
                200, {"choices": [{"text": " a" * num_tokens}], "usage": usage | {"completion_tokens": num_tokens}}
            )
            return
        if fault in ("cut", "error_event"):
            events = events[: len(events) // 2]
        if fault == "error_event":
            events.append(chunk(b'data: {"error": {"message": "as asked", "type": "server_error"}}\n\n') + b"0\r\n\r\n")
        elif fault == "abort":
            events = [ABORTED]
        elif fault == "no_done":
            events[-1] = b"0\r\n\r\n"
        self.transport.write(HEAD + (ROLE if "chat" in path else b""))
        self.play(events, self.loop.time() + self.config.ttft_ms / 1e3, 0, fault)

    def play(self, events: list[bytes], first_s: float, sent: int, fault: str) -> None:
        """Write what is due, and come back for the rest."""
        itl_s, now = self.config.itl_ms / 1e3, self.loop.time()
        due = sent
        while due < len(events) and first_s + min(due, len(events) - 2) * itl_s <= now + 0.0005:
            due += 1
        if self.config.one_write:
            self.transport.write(b"".join(events[sent:due]))
        else:
            for event in events[sent:due]:
                self.transport.write(event)
        if due < len(events):
            self.timer = self.loop.call_at(first_s + due * itl_s, partial(self.play, events, first_s, due, fault))
        elif fault in ("cut", "close_idle"):
            self.transport.close()

    def events(self, path: str, body: Body, usage: dict[str, Any], num_tokens: int) -> list[bytes]:
        """Every chunk of the answer, framed; the last holds usage, [DONE] and the end of the body."""
        chat, options = "chat" in path, body.stream_options
        made = []
        for first in range(0, num_tokens, self.config.tokens_per_event):
            last = min(num_tokens, first + self.config.tokens_per_event)
            text, finish = " a" * (last - first), b'"length"' if last == num_tokens else b"null"
            made.append(event_of(chat, text, finish, usage | {"completion_tokens": last}, options))
        end = b""
        if options.get("include_usage"):
            total = usage | {"completion_tokens": num_tokens, "total_tokens": usage["prompt_tokens"] + num_tokens}
            end = b'data: {"id":"cmpl-0","object":"x","choices":[],"usage":' + msgspec.json.encode(total) + b"}\n\n"
        return [*made, (chunk(end) if end else b"") + chunk(DONE) + b"0\r\n\r\n"]

    def json(self, status: int, content: object) -> None:
        raw = msgspec.json.encode(content)
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        self.transport.write(head.encode() + raw)


FRONT = (
    b'data: {"id":"cmpl-0000000000000000","object":"text_completion","created":1700000000,'
    b'"model":"mock","choices":[{"index":0,'
)


def event_of(chat: bool, text: str, finish: bytes, usage: dict[str, Any], options: dict[str, bool]) -> bytes:
    words = text.encode()
    content = b'"delta":{"content":"' + words + b'"}' if chat else b'"text":"' + words + b'","logprobs":null'
    so_far = b',"usage":' + msgspec.json.encode(usage) if options.get("continuous_usage_stats") else b""
    return chunk(FRONT + content + b',"finish_reason":' + finish + b"}]" + so_far + b"}\n\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ROLE = chunk(b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')


ABORTED = chunk(FRONT + b'"text":"","finish_reason":"abort"}]}\n\n') + chunk(DONE) + b"0\r\n\r\n"


async def serve(config: Mock) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    seen = Seen(config)
    server = await loop.create_server(lambda: Connection(seen), "127.0.0.1", config.port, backlog=4096)
    print(msgspec.json.encode({"port": server.sockets[0].getsockname()[1]}).decode(), flush=True)
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve(msgspec.json.decode(sys.argv[1] if len(sys.argv) > 1 else "{}", type=Mock)))
