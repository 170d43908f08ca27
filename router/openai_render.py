"""Events of a generation to OpenAI's answers: chunks of a stream, or one whole.

`Renderer` is what chat (`openai_render_chat`) and completions (`openai_render_completion`) share: the order of chunks,
usage and report. Pure; knows nothing about HTTP or server-sent events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET

from diptych.messages import FinishReason, TokenLogprob
from diptych.tokenizer import Tokenizer
from router.choices import Generation, Usage
from router.openai_answers import (
    Answer,
    CachedDetails,
    UsageInfo,
)
from router.openai_parse import RenderOptions
from router.prompt_run import ChoiceEvent
from router.run_report import run_report


@dataclass(slots=True)
class WholeChoice:
    """A choice put together from its events."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, event: ChoiceEvent) -> None:
        self.text += event.text
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        self.finish_reason = event.finish_reason


class Renderer(ABC):
    """Of one answer. `id`, `created` and `model` are the same in all of its chunks."""

    object_whole: str
    object_chunk: str

    def __init__(
        self, generation: Generation, options: RenderOptions, tokenizer: Tokenizer, *, id: str, created: int, model: str
    ) -> None:
        self._generation = generation
        self._options = options
        self._tokenizer = tokenizer
        self._shared: dict[str, Any] = {"id": id, "created": created, "model": model}
        self._opened: set[int] = set()  # choices that have had a chunk

    def chunks(self, event: ChoiceEvent) -> Iterator[Answer]:
        """The chunks one event becomes: none if it has nothing the client asked for."""
        if event.index not in self._opened:
            self._opened.add(event.index)
            yield from self._opening(event.index)
        visible = event.token_ids and (self._options.logprobs or self._options.token_ids)
        if event.text or event.finish_reason or visible:
            yield self._chunk([self._delta(event)], usage=self._usage_so_far())

    def tail(self) -> Iterator[Answer]:
        """After the last choice has ended: usage and report, if asked for."""
        if self._options.include_usage or self._options.report:
            usage = self._usage() if self._options.include_usage else UNSET
            yield self._chunk([], usage=usage, diptych=self._report())

    def whole(self, choices: list[WholeChoice]) -> Answer:
        return Answer(
            object=self.object_whole,
            choices=[self._choice(i, choice) for i, choice in enumerate(choices)],
            usage=self._usage(),
            diptych=self._report(),
            **self._prompt_ids(),
            **self._shared,
        )

    @abstractmethod
    def _opening(self, index: int) -> Iterator[Answer]: ...

    @abstractmethod
    def _delta(self, event: ChoiceEvent) -> Any: ...

    @abstractmethod
    def _choice(self, index: int, choice: WholeChoice) -> Any: ...

    def _prompt_ids(self) -> dict[str, Any]:
        return {}

    def _chunk(self, choices: list[Any], **more: Any) -> Answer:
        return Answer(object=self.object_chunk, choices=choices, **more, **self._shared)

    def _usage(self) -> UsageInfo:
        return _usage_info(self._generation.usage)

    def _usage_so_far(self) -> Any:
        if self._options.continuous_usage:
            return self._usage()
        return None if self._options.include_usage else UNSET  # OpenAI sends null until the last chunk

    def _report(self) -> Any:
        return run_report(self._generation.runs[0]) if self._options.report else UNSET

    def _ids(self, token_ids: list[int]) -> Any:
        return token_ids if self._options.token_ids else UNSET


def _usage_info(usage: Usage) -> UsageInfo:
    return UsageInfo(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=CachedDetails(usage.cached_tokens),
    )
