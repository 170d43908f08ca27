"""A planned request as the body of an OpenAI request. Prompts are made up: token ids, or words where a server takes
text only."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.client.config import RunConfig
from loadgen.client.plan import Planned
from loadgen.traces.mooncake import TokenBlocks
from loadgen.workloads.words import WORDS


class BodyBuilder:
    """The run's salt and seed are part of every prompt: a run with others finds nothing of this one in a cache."""

    def __init__(self, config: RunConfig) -> None:
        self._ids = config.prompt == "ids" and config.endpoint == "completions"
        self._chat = config.endpoint == "chat"
        self._blocks = TokenBlocks(
            config.vocabulary_size if self._ids else len(WORDS), (config.salt << 32) + config.seed
        )
        self._fixed = _fixed_fields(config)
        self._removed = {name for name, value in config.extra_body.items() if value is None}

    def build(self, planned: Planned) -> bytes:
        tokens = self._blocks.prompt(planned.request, planned.index)
        prompt: Any = tokens if self._ids else " ".join([WORDS[token] for token in tokens])
        body = {"messages": [{"role": "user", "content": prompt}]} if self._chat else {"prompt": prompt}
        body |= {"max_tokens": planned.request.output_length} | self._fixed
        for name in self._removed:
            body.pop(name, None)
        return msgspec.json.encode(body)


def _fixed_fields(config: RunConfig) -> dict[str, Any]:
    options = {"include_usage": True} | ({"continuous_usage_stats": True} if config.continuous_usage else {})
    fields: dict[str, Any] = {"model": config.model, "stream": True, "stream_options": options, "temperature": 0}
    if config.ignore_eos:
        fields["ignore_eos"] = True
    return fields | {name: value for name, value in config.extra_body.items() if value is not None}
