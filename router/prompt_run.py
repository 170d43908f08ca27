"""One prompt's choices while they run: their text, their counts, and when things happened.

Takes updates in, gives what each adds. Knows no clock, socket or core; times are handed in (monotonic seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from diptych.errors import InternalError, from_wire
from diptych.messages import FinishReason, SamplingParams, TokenLogprob, Update
from router.metrics import RequestRecord
from router.requests import Report, TokenRequest
from router.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """What one update added to one choice. Tokens come with their text: those of held-back text are held back too."""

    index: int  # across all prompts: prompt x n + choice
    text: str
    token_ids: list[int]  # stop tokens and tokens of a stop string included
    logprobs: list[TokenLogprob]  # one per token id, or none
    finish_reason: FinishReason | None
    num_tokens: int  # drawn so far by this choice


class PromptRun:
    """One prompt's choices, their text, and when things happened (monotonic seconds)."""

    def __init__(
        self, request: TokenRequest, streams: Sequence[TextStream], *, first_index: int, arrived_at: float
    ) -> None:
        self.request = request
        self.report = Report()
        self._arrived_at = arrived_at
        self._first_token_at: float | None = None
        self._last_token_at = arrived_at
        self._gaps_s: list[float] = []
        self._choices = [_Choice(first_index + i, stream, request.sampling) for i, stream in enumerate(streams)]

    @property
    def ended(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    @property
    def stopped_by_text(self) -> bool:
        return any(choice.stream.stopped for choice in self._choices)

    @property
    def num_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def ttft_ms(self) -> float | None:
        return None if self._first_token_at is None else (self._first_token_at - self._arrived_at) * 1e3

    def apply(self, update: Update, now: float) -> ChoiceEvent | None:
        """Raises the update's error, and `InternalError` if the update does not follow on what came before."""
        if update.error is not None:
            raise from_wire(update.error)
        choice = self._choices[update.choice]
        if choice.finish_reason is not None:
            return None  # ended by a stop string; the engine learns it when all choices have ended
        if update.token_ids:
            self._tick(choice, now)
        return choice.take(update)

    def _tick(self, choice: _Choice, now: float) -> None:
        if self._first_token_at is None:
            self._first_token_at = now
        if choice.num_tokens:
            self._gaps_s.append(now - choice.last_token_at)
        choice.last_token_at = self._last_token_at = now

    def check_ended(self) -> None:
        if not self.ended:
            raise InternalError("the cluster ended this request before all of its choices were complete")

    def record(self, outcome: str, now: float) -> RequestRecord:
        return RequestRecord(
            outcome=outcome,
            canary=self.request.canary,
            finish_reasons=[choice.finish_reason.value for choice in self._choices if choice.finish_reason],
            num_choices=len(self._choices),
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self.num_tokens,
            arrived_at=self._arrived_at,
            first_token_at=self._first_token_at,
            last_token_at=self._last_token_at,
            ended_at=now,
            inter_token_s=self._gaps_s,
            report=self.report,
        )


@dataclass(slots=True)
class _Choice:
    index: int
    stream: TextStream
    sampling: SamplingParams
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    last_token_at: float = 0.0
    _token_ids: list[int] = field(default_factory=list)  # not shown yet
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    def take(self, update: Update) -> ChoiceEvent | None:
        if update.position != self.num_tokens and update.token_ids:
            raise InternalError(f"token {update.position} of a choice came when token {self.num_tokens} was due")
        text = self._feed(update)
        if self.finish_reason is None and self.stream.holding:
            if not text:
                return None
            return self._event(text, [], [])
        shown, self._token_ids = self._token_ids, []
        logprobs, self._logprobs = self._logprobs, []
        if not (text or shown or self.finish_reason):
            return None
        return self._event(text, shown, logprobs)

    def _feed(self, update: Update) -> str:
        """Take the update's tokens up to a stop string; the text they add. Sets the finish reason."""
        text = ""
        for i, token_id in enumerate(update.token_ids):
            self.num_tokens += 1
            self._token_ids.append(token_id)
            if update.logprobs:
                self._logprobs.append(update.logprobs[i])
            if not self._ends_by_token(update, i):
                text += self.stream.push(token_id, may_stop=self.num_tokens > self.sampling.min_tokens)
            if self.stream.stopped:
                self.finish_reason = FinishReason.STOP
                return text
        if update.finish_reason is not None:
            text += self.stream.flush()
            self.finish_reason = FinishReason.STOP if self.stream.stopped else update.finish_reason
        return text

    def _ends_by_token(self, update: Update, i: int) -> bool:
        """The last token of a choice that stopped is the stop token: its text is not shown."""
        last = i == len(update.token_ids) - 1
        return (
            last and update.finish_reason is FinishReason.STOP and update.token_ids[i] in self.sampling.stop_token_ids
        )

    def _event(self, text: str, token_ids: list[int], logprobs: list[TokenLogprob]) -> ChoiceEvent:
        return ChoiceEvent(self.index, text, token_ids, logprobs, self.finish_reason, self.num_tokens)
