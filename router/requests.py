"""What the doors hand to the router's core, and what they get to know about how it went.

Doors (HTTP, gRPC) turn text into token ids and back; the core sees token ids only.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from diptych.messages import LegStats, SamplingParams, Update
from router.placement import Placement

DEADLINE_GRACE_S = 1.0  # the core ends every request by its deadline; a door waits so much longer for what it said then
MAX_REQUEST_ID_CHARS = 128  # of a client's own; it comes back in answers, headers and logs
_REQUEST_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_REQUEST_ID_CHARS}}}")


def is_request_id(given: str) -> bool:
    """Short, printable and without spaces."""
    return _REQUEST_ID.fullmatch(given) is not None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One prompt, already tokenized and checked against the model's limits."""

    request_id: str
    prompt: list[int]  # token ids, at least one
    sampling: SamplingParams
    priority: int = 0  # higher runs first
    cache_scope: bytes = b""  # from the tenant and `cache_salt`; narrows prefix sharing
    deadline_ms: int = 600_000  # from arrival
    ttft_limit_ms: int = 0  # from arrival; a first token after it is of no use to the client; 0: any is
    tenant: str = ""  # whose key it came with; tenants share what workers can do
    traceparent: str = ""  # the client's, if it sent one
    canary: bool = False  # sent by the router itself: left out of request metrics
    through: tuple[str, ...] = ()  # of a canary: the workers that it is to prove
    client_id: str = ""  # what the client knows it by besides (X-Request-Id); need not be unique


@dataclass(slots=True)
class Report:
    """Filled in while a request runs; complete when its stream ends."""

    prefill_id: str = ""  # empty when decode computed the prompt itself
    decode_id: str = ""
    reason: str = ""  # why it was placed so
    expected_ms: float = 0.0  # time to first token the placement predicted
    predicted_cached: int = 0  # prompt tokens the index believed to be cached where the prompt is computed
    matched_tokens: int = 0  # the longest prefix it believed any worker to hold
    prefill: LegStats | None = None  # the leg that computed the prompt
    decode: LegStats | None = None  # the leg that received KV; None when decode computed the prompt itself
    num_retries: int = 0  # attempts that failed before the one that is told of here
    num_tokens: int = 0  # generated, over all choices
    # Monotonic seconds: arrived, placed, reserved, first_token, last_token, ended; those that were reached.
    marks: dict[str, float] = field(default_factory=dict)

    def placed(self, placement: Placement, num_retries: int, now: float) -> None:
        """Note where an attempt goes; `now` in monotonic seconds."""
        self.prefill_id, self.decode_id = placement.prefill_id, placement.decode_id
        self.reason, self.expected_ms = placement.reason, placement.expected_ms
        self.predicted_cached, self.matched_tokens = placement.predicted_cached, placement.matched_tokens
        self.num_retries = num_retries
        self.marks["placed"] = now

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens nobody had to compute (KV that merely moved is not cached)."""
        return self.prefill.prompt_cached if self.prefill else 0

    @property
    def ttft_ms(self) -> float | None:
        """From the last attempt's placement to the first token; None if that came of an earlier one, or never."""
        placed, first = self.marks.get("placed"), self.marks.get("first_token")
        return None if placed is None or first is None or first < placed else (first - placed) * 1e3

    def attributes(self, num_prompt_tokens: int) -> dict[str, str | int | float | bool]:
        """For the request's span."""
        return {
            "gen_ai.usage.input_tokens": num_prompt_tokens,
            "gen_ai.usage.output_tokens": self.num_tokens,
            "gen_ai.usage.cache_read.input_tokens": self.cached_tokens,
            "diptych.prefill": self.prefill_id,
            "diptych.decode": self.decode_id,
            "diptych.placement": self.reason,
            "diptych.expected_ms": self.expected_ms,
            "diptych.retries": self.num_retries,
        }


class Core(Protocol):
    """The router's core as the doors see it (`router.life`)."""

    def generate(self, request: TokenRequest, report: Report) -> AsyncGenerator[Update, None]:
        """Run one request. Yields updates in position order for each choice; `aclose` cancels it everywhere.

        Raises:
            DiptychError: exactly one definite end, at the latest at the deadline.
        """
        ...
