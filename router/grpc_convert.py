"""Protobuf messages to the shared request types and back. No service, no state."""

from __future__ import annotations

from typing import Any

from diptych.errors import BadRequest
from diptych.messages import TokenLogprob
from diptych.v1 import inference_pb2 as pb
from router.choices import Usage
from router.frontend import Frontend, ModelCard
from router.prompt_run import ChoiceEvent
from router.sampling import DEFAULT_COMPLETION_TOKENS, MAX_LOGPROBS, SamplingFields, check_range
from router.text_request import Origin, TextRequest, encode_prompt, text_request

# Of proto `SamplingParams`, those that map one to one; the others are repeated fields or have a meaning of their own.
_OPTIONAL = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "n",
    "min_tokens",
    "ignore_eos",
)


async def parse_generate(request: pb.GenerateRequest, frontend: Frontend, origin: Origin) -> TextRequest:
    """Raises `BadRequest`, `PromptTooLong` or `ModelNotFound`, as the HTTP door would."""
    frontend.check_model(request.model)
    given = request.sampling
    logprobs = _optional(given, "logprobs")
    if logprobs is not None:
        check_range("logprobs", logprobs, 0, MAX_LOGPROBS)
    which = request.WhichOneof("prompt")
    if which is None:
        raise BadRequest("prompt is missing; give text or token_ids", param="prompt")
    prompt = await encode_prompt(request.text if which == "text" else list(request.token_ids.ids), frontend)
    return text_request(
        _fields(given),
        [prompt],
        frontend,
        origin,
        param="prompt",
        max_tokens=_optional(given, "max_tokens"),
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        logprobs=logprobs,
        cache_salt=request.cache_salt,
        priority=request.priority,
    )


def response(request_id: str, event: ChoiceEvent, final: pb.Usage | None = None) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        request_id=request_id,
        choice=event.index,
        text=event.text,
        token_ids=event.token_ids,
        logprobs=[_logprob(entry) for entry in event.logprobs],
        finish_reason=event.finish_reason or "",
        usage=final,
    )


def usage(counted: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        cached_tokens=counted.cached_tokens,
    )


def model_info(model: ModelCard) -> pb.GetModelInfoResponse:
    return pb.GetModelInfoResponse(
        model=model.name,
        max_context_tokens=model.max_context,
        vocab_size=model.vocab_size,
        block_size_tokens=model.block_size,
        fingerprint=model.fingerprint,
    )


def _fields(given: pb.SamplingParams) -> SamplingFields:
    return SamplingFields(
        stop=list(given.stop),
        stop_token_ids=list(given.stop_token_ids),
        logit_bias=dict(given.logit_bias),
        **{name: _optional(given, name) for name in _OPTIONAL},
    )


def _optional(given: pb.SamplingParams, name: str) -> Any:
    return getattr(given, name) if given.HasField(name) else None


def _logprob(entry: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.Alternative(token_id=token_id, logprob=logprob) for token_id, logprob in entry.top]
    return pb.TokenLogprob(token_id=entry.token_id, logprob=entry.logprob, top=top)
