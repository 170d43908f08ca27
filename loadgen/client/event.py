"""What the data of one event of a streamed answer is: OpenAI's chunks of completions and chats, as far as a measurement
looks at them, and what servers write in their place when something failed."""

from __future__ import annotations

import msgspec

from loadgen.client.records import Cost

NO_ERROR = frozenset((b"null", b"false", b"{}", b'""'))  # what servers write where there is none


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def has_token(self) -> bool:
        if self.delta is None:
            return bool(self.text)
        delta = self.delta
        has_call = len(bytes(delta.tool_calls)) > len(b"null")
        return bool(delta.content or delta.reasoning_content or delta.reasoning) or has_call


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class PromptTokens(msgspec.Struct):
    computed: int = 0


class Report(msgspec.Struct):
    predicted_cached_tokens: int | None = None
    prefill_worker: str | None = None
    decode_worker: str = ""
    prompt_tokens: dict[str, PromptTokens] = {}  # by worker
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    transfer_bytes: int = 0
    transfer_ms: float = 0.0
    exposed_ms: float = 0.0

    @property
    def cost(self) -> Cost | None:
        if not self.decode_worker:
            return None
        computed = self.prompt_tokens.get(self.prefill_worker or self.decode_worker, PromptTokens()).computed
        return Cost(
            prefill_worker=self.prefill_worker or "",
            decode_worker=self.decode_worker,
            computed_tokens=computed,
            queue_ms=self.queue_ms,
            prefill_ms=self.prefill_ms,
            transfer_bytes=self.transfer_bytes,
            transfer_ms=self.transfer_ms,
            exposed_ms=self.exposed_ms,
        )


class Event(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()
    object: msgspec.Raw = msgspec.Raw()
    diptych: Report | None = None  # Diptych's answer to `return_report`; other servers have none

    @property
    def is_error(self) -> bool:
        error = bytes(self.error)
        return bool(error and error not in NO_ERROR) or (not self.choices and bytes(self.object) == b'"error"')


DECODER = msgspec.json.Decoder(Event)
