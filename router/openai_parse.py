"""OpenAI requests to token requests: templates, tokens, limits and defaults.

Knows nothing about HTTP or how an answer is rendered, beyond what the client asked to be rendered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diptych.errors import BadRequest
from router.frontend import Frontend
from router.openai_schema import ChatRequest, CommonRequest, CompletionRequest, Message
from router.sampling import DEFAULT_COMPLETION_TOKENS, MAX_LOGPROBS, check_range
from router.text_request import Origin, TextRequest, encode_prompt, text_request

MAX_PROMPTS = 128  # of one completions call


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What the client wants to see."""

    stream: bool
    include_usage: bool
    continuous_usage: bool
    logprobs: bool
    token_ids: bool
    report: bool
    echoes: tuple[str, ...] = ()  # of each prompt, to stand before its completions


async def parse_chat(body: ChatRequest, frontend: Frontend, origin: Origin) -> tuple[TextRequest, RenderOptions]:
    """Raises `BadRequest`, `PromptTooLong` or `ModelNotFound`."""
    frontend.check_model(body.model)
    options = _render_options(body, logprobs=bool(body.logprobs))
    if body.top_logprobs is not None:
        check_range("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS)
        if not body.logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    prompt = await encode_chat(body.messages, frontend, add_generation_prompt=True)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    request = text_request(
        body,
        [prompt],
        frontend,
        origin,
        param="messages",
        max_tokens=max_tokens,
        default_max_tokens=None,
        logprobs=logprobs,
        cache_salt=body.cache_salt,
        priority=body.priority,
    )
    return request, options


async def parse_completion(
    body: CompletionRequest, frontend: Frontend, origin: Origin
) -> tuple[TextRequest, RenderOptions]:
    """Raises `BadRequest`, `PromptTooLong` or `ModelNotFound`."""
    frontend.check_model(body.model)
    options = _render_options(body, logprobs=body.logprobs is not None)
    _check_completion(body)
    texts = _split_prompts(body.prompt)
    if body.return_report and len(texts) > 1:
        raise BadRequest("return_report needs a single prompt", param="return_report")
    prompts = []
    for text in texts:
        prompts.append(await encode_prompt(text, frontend))
        await asyncio.sleep(0)  # so many short ones, which are encoded at once, would hold up everybody's tokens
    if body.echo:
        decode = frontend.tokenizer.decode
        options = replace(options, echoes=tuple(text if isinstance(text, str) else decode(text) for text in texts))
    request = text_request(
        body,
        prompts,
        frontend,
        origin,
        param="prompt",
        max_tokens=body.max_tokens,
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        logprobs=body.logprobs,
        cache_salt=body.cache_salt,
        priority=body.priority,
    )
    return request, options


async def encode_chat(messages: Sequence[Message], frontend: Frontend, *, add_generation_prompt: bool) -> list[int]:
    if not messages:
        raise BadRequest("messages is empty; give at least one", param="messages")
    plain = [_plain_message(message, i) for i, message in enumerate(messages)]
    text = frontend.chat_template.render(plain, add_generation_prompt=add_generation_prompt)
    # The template writes BOS itself where the model wants one.
    return await frontend.tokenizer.encode_async(text, add_special=False)


def _plain_message(message: Message, i: int) -> dict[str, Any]:
    """What a Hugging Face template expects: text parts joined as vLLM joins them, `developer` under its older name."""
    content = message.content
    if isinstance(content, list):
        for j, part in enumerate(content):
            if part.type != "text" or part.text is None:
                param = f"messages[{i}].content[{j}]"
                raise BadRequest(f"{param}: only parts of type text with a text are served", param=param)
        content = "\n".join(part.text or "" for part in content)
    if content is None and not message.tool_calls:
        raise BadRequest(f"messages[{i}].content is missing", param=f"messages[{i}].content")
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    optional = {"name": message.name, "tool_calls": message.tool_calls, "tool_call_id": message.tool_call_id}
    return plain | {name: value for name, value in optional.items() if value is not None}


def _split_prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """OpenAI's four forms to a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if all(type(item) is int for item in prompt):
        return [prompt]
    check_range("prompt", len(prompt), 1, MAX_PROMPTS, of="number of prompts")
    if all(type(item) is str for item in prompt):
        return list(prompt)
    if all(type(item) is list and all(type(token) is int for token in item) for item in prompt):
        return list(prompt)
    raise BadRequest("prompt is a string, or a list of strings, of token ids or of lists of token ids", param="prompt")


def _check_completion(body: CompletionRequest) -> None:
    if body.logprobs is not None:
        check_range("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise BadRequest("best_of is not served; leave it out or set it to n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise BadRequest("echo with logprobs is not served: prompt tokens have no log-probabilities", param="echo")


def _render_options(body: CommonRequest, *, logprobs: bool) -> RenderOptions:
    options = body.stream_options
    if options is not None and not body.stream:
        raise BadRequest("stream_options needs stream to be true", param="stream_options")
    return RenderOptions(
        stream=bool(body.stream),
        include_usage=options is not None and options.include_usage,
        continuous_usage=options is not None and options.continuous_usage_stats,
        logprobs=logprobs,
        token_ids=bool(body.return_token_ids),
        report=bool(body.return_report),
    )
