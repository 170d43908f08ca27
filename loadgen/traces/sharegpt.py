"""ShareGPT conversations: a JSON list of `{"id", "conversations": [{"from": "human" | "gpt", "value": text}, ...]}`.

Every answer becomes one request: its prompt is all that was said before it, so later turns share their conversation's
prefix. Only lengths and that sharing are kept, not the texts; made-up tokens of the same lengths are sent. Without a
tokenizer, lengths are estimated at four characters a token. There are no times: arrivals come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgspec

from loadgen.traces.lines import checked_limit
from loadgen.traces.mooncake import TraceRequest

BLOCK_TOKENS = 16
CHARACTERS_PER_TOKEN = 4  # of English, a rule of thumb (OpenAI's help pages)
QUESTIONS, ANSWERS = ("human", "user"), ("gpt", "chatgpt", "bing", "bard", "assistant")


class _Turn(msgspec.Struct):
    speaker: str = msgspec.field(name="from", default="")
    value: str = ""


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []


def estimated_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def read_sharegpt(
    path: Path, limit: int | None = None, count_tokens: Callable[[str], int] = estimated_tokens
) -> list[TraceRequest]:
    """One request for each answer, conversation by conversation, all at 0 ms.

    Raises:
        ValueError: the file is not of the format, or `limit` is below 1.
        OSError: the file cannot be read.
    """
    limit = checked_limit(limit)
    try:
        conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    requests: list[TraceRequest] = []
    ids = count()
    for conversation in conversations:
        if limit is not None and len(requests) >= limit:
            break
        requests += _turns(conversation, ids, count_tokens)
    return requests[:limit]


def _turns(conversation: _Conversation, ids: count[int], count_tokens: Callable[[str], int]) -> list[TraceRequest]:
    requests, said, blocks = [], 0, list[int]()
    for turn in conversation.conversations:
        length = count_tokens(turn.value)
        if turn.speaker in ANSWERS and said and length:
            requests.append(TraceRequest(0.0, said, length, tuple(blocks), BLOCK_TOKENS))
        said += length
        while len(blocks) * BLOCK_TOKENS < said:
            blocks.append(next(ids))
    return requests
