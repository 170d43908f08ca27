"""What a streamed answer says, event by event, with the time at which each came. Pure: fed with bytes and times.

How an answer may fail, in `Record.failure`:

    http_NNN       refused or failed with this status; 429 and 503 are refusals
    error_event    an error in mid-stream
    cut            the connection ended in mid-answer
    truncated      the stream ended in order, but without a finish reason and without [DONE]
    empty          a whole answer without a token
    not_a_stream   HTTP 200 that is no event stream, or an event that is not JSON of this shape
    timeout        not done within the run's limit
    connect        no connection
    aborted        the run was stopped
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from loadgen.client.records import Cost, Record
from loadgen.client.sse import EventSplitter

DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_token(self) -> bool:
        if self.delta is None:
            return bool(self.text)
        delta = self.delta
        has_call = len(bytes(delta.tool_calls)) > len(b"null")
        return bool(delta.content or delta.reasoning_content or delta.reasoning) or has_call


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _PromptTokens(msgspec.Struct):
    computed: int = 0


class _Report(msgspec.Struct):
    predicted_cached_tokens: int | None = None
    prefill_worker: str | None = None
    decode_worker: str = ""
    prompt_tokens: dict[str, _PromptTokens] = {}  # by worker
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    transfer_bytes: int = 0
    transfer_ms: float = 0.0
    exposed_ms: float = 0.0

    @property
    def cost(self) -> Cost | None:
        if not self.decode_worker:
            return None
        computed = self.prompt_tokens.get(self.prefill_worker or self.decode_worker, _PromptTokens()).computed
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


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()
    diptych: _Report | None = None  # Diptych's answer to `return_report`; other servers have none


_DECODER = msgspec.json.Decoder(_Event)


class Answer:
    """One response. Times are seconds of one clock."""

    def __init__(self) -> None:
        self.failure = ""
        self.status = 0
        self.started = False  # a byte of it came
        self._splitter = EventSplitter()
        self._times: list[float] = []  # of events with tokens
        self._counts: list[int] = []  # running totals at those, where the server says
        self._usage = _Usage()
        self._report = _Report()
        self._finish_reason = ""
        self._finish_time: float | None = None
        self._done = False

    def head(self, status: int, content_type: str) -> None:
        self.started = True
        self.status = status
        if status != 200:
            self.failure = f"http_{status}"
        elif not content_type.startswith("text/event-stream"):
            self.failure = "not_a_stream"

    def body(self, data: bytes, at_s: float) -> None:
        if self.failure:
            return
        for event in self._splitter.feed(data):
            if event == DONE:
                self._done = True
            else:
                self._event(event, at_s)

    def end(self) -> None:
        """The response ended in order."""
        if self.failure:
            return
        if not self._done and (self._splitter.has_rest or not self._finish_reason):
            self.failure = "truncated"
        elif not self._times and (not self._finish_reason or self._usage.completion_tokens == 0):
            self.failure = "empty"

    def fill(self, record: Record, due_s: float, now_s: float) -> None:
        """Write what is known into the record of a request that was due at `due_s`."""
        record.failure, record.status, record.finish_reason = self.failure, self.status, self._finish_reason
        times = self._times or ([self._finish_time] if self._finish_time is not None else [])  # only unprintable tokens
        if times:
            record.ttft_ms = _ms(times[0] - due_s)
            record.itl_ms = [_ms(after - before) for before, after in pairwise(times)]
        # The last token may have had no text of its own to show; then the finish reason came with it.
        last = max((*times[-1:], *([self._finish_time] if self._finish_time else [])), default=now_s)
        record.e2e_ms = _ms((now_s if self.failure else last) - due_s)
        counts = self._counts
        if len(counts) == len(times) and counts:
            record.event_tokens = [counts[0], *(after - before for before, after in pairwise(counts))]
        usage = self._usage
        record.prompt_tokens = usage.prompt_tokens
        record.output_tokens = len(times) if usage.completion_tokens is None else usage.completion_tokens
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        record.predicted_cached_tokens = self._report.predicted_cached_tokens
        record.cost = self._report.cost

    def _event(self, data: bytes, at_s: float) -> None:
        try:
            event = _DECODER.decode(data)
        except ValueError:  # not JSON, of another shape, or not UTF-8
            self.failure = "not_a_stream"
            return
        if len(bytes(event.error)) > len(b"null"):
            self.failure = "error_event"
            return
        if event.usage is not None:
            self._usage = event.usage
        if event.diptych is not None:
            self._report = event.diptych
        has_token = False
        for choice in event.choices:
            has_token = has_token or choice.has_token
            if choice.finish_reason:
                self._finish_reason, self._finish_time = choice.finish_reason, at_s
        count = None if event.usage is None else event.usage.completion_tokens
        # After the first one that shows, a token without text of its own (half a character) is known by the count.
        if has_token or (count is not None and self._counts and count > self._counts[-1]):
            self._times.append(at_s)
            if count is not None:
                self._counts.append(count)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
