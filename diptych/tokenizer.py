"""Text to token ids and back, over a model folder's `tokenizer.json`.

The router tokenizes once; workers see token ids only. Truncation and padding that a tokenizer.json may carry are
switched off: a prompt is never shortened in silence.

Knows nothing about chat templates (`diptych.chat_template`), requests or models.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders

from diptych.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer

THREAD_ABOVE_CHARS = 8_192  # ~4 ms of encoding; longer texts must not hold up the event loop

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's byte fallback


class Tokenizer:
    """Encodes, decodes and describes tokens. Safe to share between tasks and threads."""

    def __init__(self, tokenizer: RustTokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._bytes: dict[int, bytes] = {}
        added = tokenizer.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read `tokenizer.json` of a model folder.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is not a tokenizer.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; a model folder needs the `tokenizers` library's JSON format")
        try:
            return cls(RustTokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Tokens including added ones. A model's embedding may have more rows (padding) or fewer."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`. `add_special` lets the tokenizer add its BOS/EOS; a rendered chat has its own."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    async def encode_async(self, text: str, *, add_special: bool) -> list[int]:
        """`encode`, in a worker thread if the text is long."""
        if len(text) <= THREAD_ABOVE_CHARS:
            return self.encode(text, add_special=add_special)
        return await asyncio.to_thread(self.encode, text, add_special=add_special)

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special)
        return text

    def token_id(self, token: str) -> int | None:
        """Id of a token given by its name, such as `<|im_end|>`."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, specials included; empty for an id the tokenizer does not know."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._bytes_of(token_id)
        return known

    def detokenizer(self) -> Detokenizer:
        """A fresh stream of text for one choice. Special tokens have no text."""
        if self._byte_level:
            return ByteLevelDetokenizer(self._visible_bytes)
        return WindowDetokenizer(self.decode)

    def _visible_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self.special_token_ids else self.token_bytes(token_id)

    def _bytes_of(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            return _byte_level_bytes(token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("\u2581", " ").encode()  # SentencePiece writes a space as U+2581


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (`bytes_to_unicode` in openai/gpt-2 `src/encoder.py`), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    stand_ins = [*printable, *range(0x100, 0x100 + len(others))]
    return {chr(stand_in): byte for stand_in, byte in zip(stand_ins, printable + others, strict=True)}


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    # As `ByteLevel.decode_chain` does: a token with a character outside the alphabet (an added one) stands for itself.
    if all(char in _ALPHABET for char in token):
        return bytes(_ALPHABET[char] for char in token)
    return token.encode()
