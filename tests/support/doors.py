"""The router's doors around a scripted core, for tests of them."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import prometheus_client
import uvicorn
from scripted_core import ScriptedCore, say
from starlette.applications import Starlette
from tiny_tokenizer import EOS, IM_END, write_tokenizer_folder

from diptych.chat_template import ChatTemplate
from diptych.config import RouterConfig
from diptych.telemetry import make_logger
from diptych.tokenizer import Tokenizer
from router.frontend import Frontend, HealthView, ModelCard
from router.http_door import make_app
from router.keys import Keys
from router.metrics import RequestMetrics


class Doors:
    """A frontend and what tests look at behind it."""

    def __init__(self, folder: Path, core: ScriptedCore, **config: Any) -> None:
        write_tokenizer_folder(folder)
        self.core = core
        self.tokenizer = Tokenizer.from_folder(folder)
        self.eos = self.tokenizer.token_id(IM_END) or 0
        self.registry = prometheus_client.CollectorRegistry()
        self.log = io.StringIO()
        self.view = HealthView(healthy=True, ready=True, details={"workers": 2})
        card = ModelCard(
            name="tiny",
            max_context=256,
            vocab_size=self.tokenizer.vocab_size,
            block_size=16,
            fingerprint="f00d",
            created=1_700_000_000,
            eos_token_ids=(self.eos, self.tokenizer.token_id(EOS) or 0),
        )
        self.frontend = Frontend(
            core,
            card,
            self.tokenizer,
            ChatTemplate.from_folder(folder),
            RouterConfig(model=str(folder), max_choices=4, max_body_bytes=10_000, **config),
            RequestMetrics(self.registry, "tiny"),
            logger := make_logger("router", stream=self.log),
            Keys(config.get("api_keys_file", ""), logger, time.monotonic),
        )

    def speak(self, text: str) -> None:
        """Let the core answer every request with `text` and a stop token, in each choice."""
        ids = self.tokenizer.encode(text, add_special=False)
        self.core.script = lambda request: say(
            ids, eos=self.eos, choices=request.sampling.n, logprobs=request.sampling.logprobs is not None
        )

    @property
    def app(self) -> Starlette:
        return make_app(self.frontend, lambda: self.view, lambda: prometheus_client.generate_latest(self.registry))

    def counted(self, code: str) -> float:
        value = self.registry.get_sample_value("diptych_requests_total", {"model_name": "tiny", "code": code})
        return value or 0.0

    @asynccontextmanager
    async def serve_http(self) -> AsyncIterator[str]:
        """A real uvicorn on a loopback port; gives its URL."""
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        sockets = [config.bind_socket()]
        task = asyncio.create_task(server.serve(sockets))
        try:
            yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
            for socket in sockets:
                socket.close()


def sse(body: str) -> list[Any]:
    """The JSON of each event; `[DONE]` as that string."""
    events = [block.removeprefix("data: ") for block in body.split("\n\n") if block]
    return [event if event == "[DONE]" else json.loads(event) for event in events]
