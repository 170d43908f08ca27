"""Sampling parameters as clients give them, checked and completed with defaults. Shared by the HTTP and gRPC doors.

Knows nothing about prompts' text, JSON or protobuf.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from diptych.errors import BadRequest, PromptTooLong
from diptych.messages import SamplingParams
from router.frontend import ModelCard

Value = TypeVar("Value")

MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 1_024
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROBS = 20
MAX_CACHE_SALT_BYTES = 256
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat's default is the rest of the context

# (field, lowest, highest), both ends allowed
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 2.0),
    ("top_k", -1, 2**31 - 1),
    ("min_p", 0.0, 1.0),
    ("frequency_penalty", -2.0, 2.0),
    ("presence_penalty", -2.0, 2.0),
    ("seed", -(2**63), 2**63 - 1),
)
_ABOVE_ZERO: tuple[tuple[str, float], ...] = (("top_p", 1.0), ("repetition_penalty", 10.0))


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What every door accepts under the same names. None is "not given"."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None


def sampling_params(
    fields: SamplingFields, *, max_tokens: int, logprobs: int | None, model: ModelCard, max_choices: int
) -> SamplingParams:
    """Raises `BadRequest` naming the first field that is out of its range."""
    _check_ranges(fields, max_tokens, max_choices)
    check_token_ids("stop_token_ids", fields.stop_token_ids or (), model.vocab_size)
    check_range("stop_token_ids", len(fields.stop_token_ids or ()), 0, MAX_STOP_TOKEN_IDS, of="number of ids")
    _check_logit_bias(fields.logit_bias or {}, model.vocab_size)
    eos = () if fields.ignore_eos else model.eos_token_ids
    return SamplingParams(
        max_tokens=max_tokens,
        seed=fields.seed if fields.seed is not None else secrets.randbits(63),
        n=_or(fields.n, 1),
        temperature=_or(fields.temperature, 1.0),
        top_p=_or(fields.top_p, 1.0),
        top_k=max(_or(fields.top_k, 0), 0),
        min_p=_or(fields.min_p, 0.0),
        repetition_penalty=_or(fields.repetition_penalty, 1.0),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        logit_bias=fields.logit_bias or {},
        stop_token_ids=tuple(dict.fromkeys((*eos, *(fields.stop_token_ids or ())))),
        min_tokens=_or(fields.min_tokens, 0),
        logprobs=logprobs,
    )


def completion_budget(requested: int | None, default: int | None, prompt_tokens: int, max_context: int) -> int:
    """Tokens each choice may have: as requested, else the default (None: the rest of the context) as far as it fits.

    Raises:
        BadRequest: fewer than one was asked for.
        PromptTooLong: prompt and completion can never fit; the message has both numbers.
    """
    if requested is not None and requested < 1:
        raise BadRequest(f"max_tokens is {requested}; it must be at least 1", param="max_tokens")
    room = max_context - prompt_tokens
    wanted = 1 if requested is None else requested
    if wanted > room:
        raise PromptTooLong(
            f"the context of this model is {max_context} tokens; the request needs {prompt_tokens + wanted} "
            f"({prompt_tokens} of the prompt and {'at least ' * (requested is None)}{wanted} to complete it)"
        )
    if requested is not None:
        return requested
    return room if default is None else min(default, room)


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Raises `BadRequest` for an empty or overlong string, or too many."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    check_range("stop", len(strings), 0, MAX_STOP_STRINGS, of="number of strings")
    for string in strings:
        check_range("stop", len(string), 1, MAX_STOP_CHARS, of="length of a string")
    return strings


def cache_scope(salt: str | None, tenant: str = "") -> bytes:
    """The scope mixed into the key of the block hashes: who has another scope shares no block.

    Args:
        salt: the client's; it can only narrow who shares a prefix.
        tenant: whose key the client showed. No salt can imitate it: it begins with a byte that is not UTF-8.
    """
    scope = (salt or "").encode()
    check_range("cache_salt", len(scope), 0, MAX_CACHE_SALT_BYTES, of="length in bytes")
    return b"\xff" + tenant.encode() + b"\xff" + scope if tenant else scope


def check_range(param: str, value: float, low: float, high: float, *, of: str = "") -> None:
    if not low <= value <= high:  # written so that NaN is refused as well
        what = f"the {of} in {param}" if of else param
        raise BadRequest(f"{what} is {_shown(value)}; it must be between {low:g} and {high:g}", param=param)


def _shown(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:  # integers of JSON may be larger than any float
        return "beyond 1e308"


def check_token_ids(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise BadRequest(
                f"{param} has token id {token_id}; this model's ids are 0 to {vocab_size - 1}", param=param
            )


def _check_ranges(fields: SamplingFields, max_tokens: int, max_choices: int) -> None:
    for name, low, high in _RANGES:
        value = getattr(fields, name)
        if value is not None:
            check_range(name, value, low, high)
    for name, high in _ABOVE_ZERO:
        value = getattr(fields, name)
        if value is not None and not 0.0 < value <= high:
            raise BadRequest(f"{name} is {value:g}; it must be above 0 and at most {high:g}", param=name)
    check_range("n", _or(fields.n, 1), 1, max_choices)
    check_range("min_tokens", _or(fields.min_tokens, 0), 0, max_tokens)


def _check_logit_bias(bias: dict[int, float], vocab_size: int) -> None:
    check_token_ids("logit_bias", bias, vocab_size)
    for value in bias.values():
        check_range("logit_bias", value, -100.0, 100.0, of="bias")


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value
