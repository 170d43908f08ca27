from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tiny_tokenizer import BOS, CORPUS, IM_END, write_tokenizer_folder
from tokenizers import Tokenizer as RustTokenizer

from diptych.tokenizer import THREAD_ABOVE_CHARS, Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tokenizer_folder(tmp_path))


@pytest.mark.parametrize("text", ["", "hello world", "größe 你好 🦊", "a\x00b\r\n\t ", "<|im_end|>"])
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text


def test_bos_only_where_asked(tokenizer: Tokenizer) -> None:
    bos = tokenizer.token_id(BOS)
    assert tokenizer.encode("hi", add_special=True)[0] == bos
    assert bos not in tokenizer.encode("hi", add_special=False)


def test_truncation_of_the_file_is_switched_off(tmp_path: Path) -> None:
    path = write_tokenizer_folder(tmp_path) / "tokenizer.json"
    assert len(RustTokenizer.from_file(str(path)).encode("x " * 100).ids) == 8
    assert len(Tokenizer.from_folder(tmp_path).encode("x " * 100, add_special=False)) >= 100


async def test_long_texts_are_encoded_off_the_loop_with_the_same_result(tokenizer: Tokenizer) -> None:
    text = "hello 你好 " * THREAD_ABOVE_CHARS
    ids = await tokenizer.encode_async(text, add_special=True)
    assert ids == tokenizer.encode(text, add_special=True)
    several = await asyncio.gather(*(tokenizer.encode_async(text, add_special=True) for _ in range(3)))
    assert several == [ids] * 3


def test_specials_are_skipped_or_shown(tokenizer: Tokenizer) -> None:
    end = tokenizer.token_id(IM_END)
    assert end is not None
    assert end in tokenizer.special_token_ids
    ids = [*tokenizer.encode("hi", add_special=False), end]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "hi<|im_end|>"
    assert tokenizer.token_bytes(end) == b"<|im_end|>"


def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    text = " ".join(CORPUS) + "größe 🦊\x00\xad"
    ids = tokenizer.encode(text, add_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_unknown_ids_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.vocab_size + 7) == b""
    assert tokenizer.detokenizer().push(tokenizer.vocab_size + 7) == ""


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
