"""The OpenAI requests as structs. Types are checked while decoding; values in `openai_parse` and `sampling`.

Fields of OpenAI's that are not here are unknown: they are ignored and named in a warning header.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from router.sampling import SamplingFields


class ContentPart(msgspec.Struct, frozen=True):
    type: str  # only "text" is served; others get an error that names them
    text: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: usage so far in every chunk


class CommonRequest(SamplingFields, frozen=True, kw_only=True):
    """What chat and completions share beyond sampling."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # accepted, used for nothing
    priority: int | None = None  # higher runs first
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_report: bool | None = None  # ours: where the request ran and what it cost


class ChatRequest(CommonRequest, frozen=True, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None  # wins over max_tokens
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(CommonRequest, frozen=True, kw_only=True):
    prompt: str | list[Any]  # list: of strings, of token ids, or of lists of token ids
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's: a prompt or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    tokens: list[int]
