"""Log-probabilities in OpenAI's two shapes. Knows nothing about choices or streams."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.messages import TokenLogprob
from diptych.tokenizer import Tokenizer
from router.openai_answers import ChatLogprobs, ContentLogprob, TextLogprobs, TopLogprob

LOWEST = -9999.0  # stands for minus infinity, which JSON lacks (as vLLM writes it)


def chat_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> ChatLogprobs:
    return ChatLogprobs([_content(entry, tokenizer) for entry in logprobs])


def text_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer, offset: int) -> TextLogprobs:
    """`offset` is where the first token's text begins. The drawn token is always among the `top_logprobs`."""
    tokens = [_text(entry.token_id, tokenizer) for entry in logprobs]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = []
    for entry, token in zip(logprobs, tokens, strict=True):
        top = {_text(token_id, tokenizer): max(value, LOWEST) for token_id, value in entry.top}
        tops.append(top | {token: max(entry.logprob, LOWEST)})
    return TextLogprobs(offsets, [max(entry.logprob, LOWEST) for entry in logprobs], tokens, tops)


def _content(entry: TokenLogprob, tokenizer: Tokenizer) -> ContentLogprob:
    top = [_top(token_id, value, tokenizer) for token_id, value in entry.top]
    own = _top(entry.token_id, entry.logprob, tokenizer)
    return ContentLogprob(own.token, own.logprob, own.bytes, top)


def _top(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    return TopLogprob(_text(token_id, tokenizer), max(logprob, LOWEST), list(tokenizer.token_bytes(token_id)))


def _text(token_id: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(token_id).decode(errors="replace")
