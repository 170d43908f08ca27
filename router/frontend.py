"""What both doors stand on: the model they serve, the core they call, and what they count and log with.

Built once by the process and handed to the HTTP and the gRPC door, so that both parse, limit and measure alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diptych.chat_template import ChatTemplate
from diptych.config import RouterConfig
from diptych.errors import ModelNotFound
from diptych.telemetry import Logger
from diptych.tokenizer import Tokenizer
from router.keys import Keys
from router.metrics import RequestMetrics
from router.requests import Core


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The served model as clients may know it."""

    name: str
    max_context: int  # tokens, prompt and completion
    vocab_size: int  # rows of the model's embedding; ids from here on are refused
    block_size: int  # tokens a KV block
    fingerprint: str
    created: int  # unix seconds
    eos_token_ids: tuple[int, ...] = ()
    simulated: bool = False  # no model computes: its text means nothing, and its speed is a timing model's


@dataclass(frozen=True, slots=True)
class HealthView:
    """The router's health at one moment."""

    healthy: bool  # a canary or a real request went end to end recently
    ready: bool  # takes new requests
    reasons: tuple[str, ...] = ()  # why not, in words
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frontend:
    core: Core
    model: ModelCard
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    config: RouterConfig
    metrics: RequestMetrics
    logger: Logger
    keys: Keys
    clock: Callable[[], float] = time.monotonic  # seconds

    def check_model(self, name: str | None) -> None:
        """No name means the served model.

        Raises:
            ModelNotFound: another model was asked for.
        """
        if name and name != self.model.name:
            raise ModelNotFound(f"this cluster serves {self.model.name!r} only", param="model")
