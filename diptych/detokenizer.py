"""Token ids to text, one token at a time, never half a character.

`ByteLevelDetokenizer` is exact and linear for byte-level BPE (GPT-2, Llama 3, SmolLM2): a token is a fixed string of
bytes. `WindowDetokenizer` works with any decoder by decoding a short window again; the idea of its two offsets is
that of text-generation-inference and vLLM.

Knows nothing about stop strings, choices or requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are no character (yet)
MAX_PENDING_TOKENS = 8  # a character has at most 4 bytes; more pending tokens than this will never become one


class Detokenizer(Protocol):
    """One choice's text so far. `push` returns what a token adds; `flush` what is left when no token will follow."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class ByteLevelDetokenizer:
    """For vocabularies whose tokens are byte strings: the concatenation equals decoding all tokens at once."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For every other decoder: text of a window of recent tokens with the new one, less the text without it.

    ids:  ... | context | pending |        context was emitted, but shapes what follows (a leading space)
              start     read      end
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._read = 0  # tokens of the window whose text is out

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        return self._advance(final=False)

    def flush(self) -> str:
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        context = self._decode(self._window[: self._read])
        text = self._decode(self._window)
        pending = len(self._window) - self._read
        if len(text) <= len(context):  # a special token, or a space a decoder strips for now
            if pending > MAX_PENDING_TOKENS:
                self._window.pop()
            return ""
        if text.endswith(REPLACEMENT) and not final and pending <= MAX_PENDING_TOKENS:
            return ""

        self._window = self._window[self._read :]
        self._read = len(self._window)
        return text[len(context) :]
