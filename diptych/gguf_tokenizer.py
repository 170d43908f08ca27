"""Builds `tokenizer.json` and `tokenizer_config.json` from a GGUF file's metadata.

Knows byte-level BPE vocabularies only, and of those the pre-tokenizers below: a tokenizer that splits text differently
from the one the model was trained with gives worse answers without any error, so unknown ones are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType
_DIGITS_FIRST = {"smollm": True, "gpt-2": False}  # tokenizer.ggml.pre: whether each digit is a word of its own


def build_tokenizer(source: Path, metadata: dict[str, Any]) -> Tokenizer:
    """The BPE tokenizer the GGUF describes, with its control tokens as special tokens.

    Raises:
        ValueError: the vocabulary is not byte-level BPE or its pre-tokenizer is not known.
    """
    kind, pre = (metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or pre not in _DIGITS_FIRST:
        raise ValueError(
            f"{source}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported; supported is 'gpt2' with "
            f"{' or '.join(map(repr, _DIGITS_FIRST))}"
        )

    for name in ("tokens", "merges"):
        if f"tokenizer.ggml.{name}" not in metadata:
            raise ValueError(f"{source}: metadata tokenizer.ggml.{name} is missing")

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if _DIGITS_FIRST[pre]
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=type_ == CONTROL, normalized=False)
        for token, type_ in zip(tokens, types, strict=True)
        if type_ in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def build_tokenizer_config(metadata: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What `transformers` and our own tokenizer read beside the vocabulary: named tokens and the chat template."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    named = {
        f"{name}_token": tokens[token_id]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if (token_id := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    template = metadata.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token")),
        **named,
        **({"chat_template": template} if template else {}),
    }
