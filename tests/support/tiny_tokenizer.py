"""A byte-level BPE tokenizer made on the spot: every byte is a token, a few words are merged, ChatML specials."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

BOS, EOS, IM_START, IM_END = "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CORPUS = ["hello world, how are you today? " * 4, "stop the stopping, now", "the quick brown fox", "größe 你好 🦊"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _train(corpus: list[str]) -> RustTokenizer:
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in (BOS, EOS, IM_START, IM_END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@functools.cache
def rust_tokenizer_json() -> str:
    tokenizer = _train(CORPUS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    tokenizer.enable_truncation(8)  # as some published tokenizer.json carry by accident
    return str(tokenizer.to_str())


def write_tokenizer_folder(folder: Path) -> Path:
    """`tokenizer.json` and `tokenizer_config.json` of a model folder, without the model."""
    (folder / "tokenizer.json").write_text(rust_tokenizer_json(), "utf-8")
    config = {"bos_token": BOS, "eos_token": {"content": EOS, "special": True}, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
