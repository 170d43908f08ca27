"""How a choice of a chat looks: a message, or deltas of one that begin with its role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diptych.messages import TokenLogprob
from router.openai_answers import Answer, ChatChoice, ChatChunkChoice, ChatDelta, ChatMessage
from router.openai_logprobs import chat_logprobs
from router.openai_render import Renderer, WholeChoice
from router.prompt_run import ChoiceEvent


class ChatRenderer(Renderer):
    object_whole, object_chunk = "chat.completion", "chat.completion.chunk"

    def _opening(self, index: int) -> Iterator[Answer]:
        prompt_ids = self._prompt_ids() if len(self._opened) == 1 else {}
        role = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
        yield self._chunk([role], usage=self._usage_so_far(), **prompt_ids)

    def _delta(self, event: ChoiceEvent) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=event.index,
            delta=ChatDelta(content=event.text) if event.text else ChatDelta(),
            logprobs=self._logprobs(event.logprobs),
            finish_reason=event.finish_reason,
            token_ids=self._ids(event.token_ids),
        )

    def _choice(self, index: int, choice: WholeChoice) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=ChatMessage(content=choice.text),
            logprobs=self._logprobs(choice.logprobs),
            finish_reason=str(choice.finish_reason),
            token_ids=self._ids(choice.token_ids),
        )

    def _logprobs(self, logprobs: list[TokenLogprob]) -> Any:
        return chat_logprobs(logprobs, self._tokenizer) if self._options.logprobs else None

    def _prompt_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": self._ids(self._generation.request.prompts[0].prompt)}
