"""What a streamed answer says, event by event, with the time at which each came. Pure: fed with bytes and times.

How an answer may fail, in `Record.failure`:

    http_NNN       refused or failed with this status; 429 and 503 are refusals
    error_event    an error in mid-stream
    finish_NAME    a finish reason that no whole answer has, such as `abort` (vLLM, with HTTP 200 and [DONE]) or `error`
    cut            the connection ended in mid-answer
    truncated      the stream ended in order, but without a finish reason and without [DONE]
    empty          a whole answer without a token: none to see, and none that the server counted
    not_a_stream   HTTP 200 that is no event stream, or an event that is not JSON of this shape
    timeout        not done within the run's limit
    connect        no connection
    aborted        the run was stopped
"""

from __future__ import annotations

import re
from itertools import pairwise

from loadgen.client.event import DECODER, Report, Usage
from loadgen.client.records import Record
from loadgen.client.sse import EventSplitter

DONE = b"[DONE]"
WHOLE = frozenset(("stop", "length", "tool_calls", "function_call", "content_filter"))  # OpenAI's finish reasons
MAX_NAME = 24  # characters of a finish reason that is not among them


class Answer:
    """One response. Times are seconds of one clock."""

    def __init__(self) -> None:
        self.failure = ""
        self.status = 0
        self.started = False  # a byte of it came
        self._splitter = EventSplitter()
        self._times: list[float] = []  # of events with tokens
        self._counts: list[int] = []  # running totals at those, where the server says
        self._usage = Usage()
        self._report = Report()
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
                if self.failure:
                    return
        if self._splitter.saw_error:
            self.failure = "error_event"

    def end(self) -> None:
        """The response ended in order."""
        if self.failure:
            return
        done = self._done or self._splitter.rest == DONE
        if self._splitter.saw_error:
            self.failure = "error_event"
        elif not done and (self._splitter.has_rest or not self._finish_reason):
            self.failure = "truncated"
        elif not self._times and not self._usage.completion_tokens:
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
        record.tokens_counted = usage.completion_tokens is not None
        record.output_tokens = len(times) if usage.completion_tokens is None else usage.completion_tokens
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        record.predicted_cached_tokens = self._report.predicted_cached_tokens
        record.cost = self._report.cost

    def _event(self, data: bytes, at_s: float) -> None:
        try:
            event = DECODER.decode(data)
        except ValueError:  # not JSON, of another shape, or not UTF-8
            self.failure = "not_a_stream"
            return
        if event.is_error:
            self.failure = "error_event"
            return
        if event.usage is not None:
            self._usage = event.usage
        if event.diptych is not None:
            self._report = event.diptych
        has_token = False
        for choice in event.choices or ():
            has_token = has_token or choice.has_token
            if choice.finish_reason:
                self._finish(choice.finish_reason, at_s)
        count = None if event.usage is None else event.usage.completion_tokens
        # After the first one that shows, a token without text of its own (half a character) is known by the count.
        if has_token or (count is not None and self._counts and count > self._counts[-1]):
            self._times.append(at_s)
            if count is not None:
                self._counts.append(count)

    def _finish(self, reason: str, at_s: float) -> None:
        if reason not in WHOLE:  # a server's own words go no further than this
            reason = re.sub("[^a-z_]", "", reason.lower())[:MAX_NAME] or "other"
            self.failure = f"finish_{reason}"
        self._finish_reason, self._finish_time = reason, at_s


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
