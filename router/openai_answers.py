"""The OpenAI answers as structs, in the order and with the nulls their clients expect. Shapes only."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class CachedDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class UsageInfo(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedDetails


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ContentLogprob]


class TextLogprobs(msgspec.Struct, frozen=True):
    """Completions' legacy shape: parallel arrays; offsets in characters of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class PromptTokens(msgspec.Struct, frozen=True):
    """By source, at one worker."""

    computed: int
    local_cache: int
    transferred: int


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """`return_report`: where a request ran and what it cost."""

    prefill_worker: str | None  # null: decode computed the prompt itself
    decode_worker: str
    reason: str
    predicted_cached_tokens: int
    cached_tokens: int
    prompt_tokens: dict[str, PromptTokens]  # by worker id
    queue_ms: float  # where the prompt was computed: until the engine took it up
    prefill_ms: float  # there: until its last token was computed
    transfer_bytes: int
    transfer_ms: float
    exposed_ms: float  # prefill's last token to KV verified at decode
    expected_ttft_ms: float
    ttft_ms: float | None


class PlacementReport(msgspec.Struct, frozen=True, kw_only=True):
    """The header X-Diptych-Placement: what is known when headers are sent."""

    request_id: str  # for GET /explain/{id} at the admin door
    prefill_worker: str | None  # null: decode computed the prompt itself
    decode_worker: str
    reason: str
    predicted_cached_tokens: int
    cached_tokens: int | None  # null: not known yet
    expected_ttft_ms: float
    ttft_ms: float | None
    retries: int


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: str = "assistant"
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer or one chunk of it; `object` says which."""

    id: str
    object: str
    created: int  # unix seconds
    model: str
    choices: list[ChatChoice] | list[ChatChunkChoice] | list[TextChoice]
    usage: UsageInfo | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    diptych: RunReport | UnsetType = UNSET
