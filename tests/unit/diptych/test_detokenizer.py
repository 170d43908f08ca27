from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizer import rust_tokenizer_json
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from diptych.detokenizer import MAX_PENDING_TOKENS, Detokenizer, WindowDetokenizer
from diptych.tokenizer import Tokenizer

BYTE_LEVEL = Tokenizer(RustTokenizer.from_str(rust_tokenizer_json()))


def _sentencepiece() -> Tokenizer:
    """Llama 2's decoder: a space is U+2581, the first one is stripped, unknown characters are single bytes."""
    words = ["<unk>", "▁", "▁hello", "▁world", "lo", "▁the", "."]
    vocabulary = words + [f"<0x{byte:02X}>" for byte in range(256)]
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = RustTokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(tokenizer)


SENTENCEPIECE = _sentencepiece()


def pieces(stream: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*map(stream.push, ids), stream.flush()]


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=40))
def test_byte_level_pieces_add_up_to_decoding_at_once_whatever_the_tokens(ids: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL.detokenizer(), ids)) == BYTE_LEVEL.decode(ids)


@given(st.text(max_size=30))
def test_no_piece_of_valid_text_is_broken(text: str) -> None:
    ids = BYTE_LEVEL.encode(text.replace("\ufffd", ""), add_special=False)
    assert not any("\ufffd" in piece for piece in pieces(BYTE_LEVEL.detokenizer(), ids))


@given(st.text(max_size=12))
def test_window_over_byte_level_agrees(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special=False)
    assert "".join(pieces(WindowDetokenizer(BYTE_LEVEL.decode), ids)) == BYTE_LEVEL.decode(ids)


@given(st.lists(st.sampled_from(["hello", "world", "the", "你", "🦊", "é"]), min_size=1, max_size=10))
def test_sentencepiece_keeps_spaces_and_whole_characters(words: list[str]) -> None:
    known = {"hello": [2], "world": [3], "the": [5]}
    ids = [i for word in words for i in known.get(word, [7 + byte for byte in word.encode()])]
    out = pieces(SENTENCEPIECE.detokenizer(), ids)
    assert "".join(out) == SENTENCEPIECE.decode(ids)
    assert not any("\ufffd" in piece for piece in out)


def test_an_incomplete_character_waits_and_is_replaced_at_the_end() -> None:
    first = next(i for i in range(BYTE_LEVEL.vocab_size) if BYTE_LEVEL.token_bytes(i) == b"\xf0")
    stream = BYTE_LEVEL.detokenizer()
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"


def test_endless_invalid_bytes_are_not_held_for_ever() -> None:
    decoded: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return SENTENCEPIECE.decode(ids)

    stream = WindowDetokenizer(counting)
    out = "".join(stream.push(7 + 0xFF) for _ in range(500))
    assert len(out) >= 500 - MAX_PENDING_TOKENS
    assert max(decoded) <= 4 * MAX_PENDING_TOKENS


def test_endless_tokens_without_text_do_not_grow_the_window() -> None:
    decoded: list[int] = []

    def silent(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return ""

    stream = WindowDetokenizer(silent)
    assert [stream.push(0) for _ in range(200)] == [""] * 200
    assert max(decoded) <= 2 * MAX_PENDING_TOKENS
