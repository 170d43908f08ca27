"""How a choice of a completion looks: text, after the prompt if it is to be echoed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diptych.messages import TokenLogprob
from router.openai_answers import Answer, TextChoice
from router.openai_logprobs import text_logprobs
from router.openai_render import Renderer, WholeChoice
from router.prompt_run import ChoiceEvent


class CompletionRenderer(Renderer):
    object_whole = object_chunk = "text_completion"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offsets: dict[int, int] = {}  # characters of logged tokens so far, by choice

    def _opening(self, index: int) -> Iterator[Answer]:
        if self._options.echoes or self._options.token_ids:
            choice = TextChoice(index=index, text=self._echo(index), prompt_token_ids=self._ids(self._prompt(index)))
            yield self._chunk([choice], usage=self._usage_so_far())

    def _delta(self, event: ChoiceEvent) -> TextChoice:
        return TextChoice(
            index=event.index,
            text=event.text,
            logprobs=self._logprobs(event.index, event.logprobs),
            finish_reason=event.finish_reason,
            token_ids=self._ids(event.token_ids),
        )

    def _choice(self, index: int, choice: WholeChoice) -> TextChoice:
        return TextChoice(
            index=index,
            text=self._echo(index) + choice.text,
            logprobs=self._logprobs(index, choice.logprobs),
            finish_reason=choice.finish_reason,
            token_ids=self._ids(choice.token_ids),
            prompt_token_ids=self._ids(self._prompt(index)),
        )

    def _logprobs(self, index: int, logprobs: list[TokenLogprob]) -> Any:
        if not self._options.logprobs:
            return None
        arrays = text_logprobs(logprobs, self._tokenizer, self._offsets.get(index, 0))
        if arrays.tokens:
            self._offsets[index] = arrays.text_offset[-1] + len(arrays.tokens[-1])
        return arrays

    def _echo(self, index: int) -> str:
        return self._options.echoes[self._prompt_index(index)] if self._options.echoes else ""

    def _prompt(self, index: int) -> list[int]:
        return self._generation.request.prompts[self._prompt_index(index)].prompt

    def _prompt_index(self, index: int) -> int:
        return index // self._generation.request.prompts[0].sampling.n
