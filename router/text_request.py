"""One call of a client as both doors hand it on: prompts as tokens, sampling checked and completed, stop strings.

Knows nothing about JSON, protobuf or how prompts were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from diptych.errors import BadRequest, PromptTooLong
from diptych.messages import MAX_PRIORITY
from router.frontend import Frontend
from router.requests import TokenRequest
from router.sampling import (
    SamplingFields,
    cache_scope,
    check_range,
    check_token_ids,
    completion_budget,
    sampling_params,
    stop_strings,
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, as far as its run needs it."""

    request_id: str  # unique in the cluster; also the id of the answer
    arrived: float  # monotonic seconds
    traceparent: str = ""
    client_id: str = ""  # what the client calls it
    tenant: str = ""  # whose key it showed; "": none was asked for
    ttft_limit_ms: int | None = None  # as the client gave it; 0: none


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One or several prompts, each with the same number of choices."""

    prompts: tuple[TokenRequest, ...]
    arrived: float  # monotonic seconds
    stop: tuple[str, ...] = ()


def text_request(
    fields: SamplingFields,
    prompts: Sequence[list[int]],
    frontend: Frontend,
    origin: Origin,
    *,
    param: str,
    max_tokens: int | None,
    default_max_tokens: int | None,
    logprobs: int | None,
    cache_salt: str | None,
    priority: int | None = None,
) -> TextRequest:
    """`param` is the field the prompts came from; `max_tokens` and its default are per choice (see `sampling`).

    Raises:
        BadRequest: a value is out of its range.
        PromptTooLong: a prompt and its completion cannot fit the context.
    """
    model = frontend.model
    try:
        budgets = [completion_budget(max_tokens, default_max_tokens, len(ids), model.max_context) for ids in prompts]
    except PromptTooLong as error:
        raise PromptTooLong(error.message, param=param) from None
    shared = sampling_params(
        fields, max_tokens=min(budgets), logprobs=logprobs, model=model, max_choices=frontend.config.max_choices
    )
    scope = cache_scope(cache_salt, origin.tenant)
    check_range("priority", priority or 0, -MAX_PRIORITY, MAX_PRIORITY)
    ttft_limit_ms = frontend.config.ttft_limit_ms if origin.ttft_limit_ms is None else origin.ttft_limit_ms
    requests = [
        TokenRequest(
            request_id=origin.request_id if len(prompts) == 1 else f"{origin.request_id}-{i}",
            prompt=prompt,
            sampling=msgspec.structs.replace(shared, max_tokens=budget),
            priority=priority or 0,
            cache_scope=scope,
            deadline_ms=frontend.config.request_deadline_ms,
            ttft_limit_ms=ttft_limit_ms,
            tenant=origin.tenant,
            traceparent=origin.traceparent,
            client_id=origin.client_id,
        )
        for i, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
    ]
    return TextRequest(tuple(requests), origin.arrived, stop_strings(fields.stop))


async def encode_prompt(prompt: str | list[int], frontend: Frontend, *, param: str = "prompt") -> list[int]:
    """Token ids of a plain prompt, with the tokenizer's BOS; ids are checked and taken as they are.

    Raises:
        BadRequest: no token, or an id the model does not have.
    """
    if isinstance(prompt, str):
        token_ids = await frontend.tokenizer.encode_async(prompt, add_special=True)
    else:
        token_ids = prompt
        check_token_ids(param, token_ids, frontend.model.vocab_size)
    if not token_ids:
        raise BadRequest(f"{param} is empty; give at least one token", param=param)
    return token_ids
