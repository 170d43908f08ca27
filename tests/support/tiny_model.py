"""Makes a tiny random model of the Llama family on the spot: a whole Hugging Face folder in a fraction of a second.

It writes nonsense, but sensitive nonsense: with an untied head, doubled output projections and tripled query and key
projections, attention is sharp and what it reads matters, so any zeroed, swapped or stale KV block changes the greedy
text. Needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 64, 128, 4, 2, 16


def make_tiny_model(
    folder: Path, seed: int = 0, *, family: str = "llama", num_layers: int = 2, max_context: int = 2048, **config: Any
) -> Path:
    """Write the model into `folder` and return it. `config` adds to or replaces fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = _config(family, num_layers, max_context, tokenizer.get_vocab_size()) | config
    _write_json(folder / "config.json", fields)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(max_context))
    save_file(make_weights(fields, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Random float32 weights that fit a config.json."""
    rng = np.random.default_rng(seed)
    family = config["model_type"]
    weights: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        weights[f"{name}.weight"] = (rng.standard_normal((rows, columns)) * gain / columns**0.5).astype(np.float32)

    def vector(name: str, size: int, centre: float) -> None:
        weights[name] = (centre + 0.1 * rng.standard_normal(size)).astype(np.float32)

    matrix("model.embed_tokens", config["vocab_size"], HIDDEN, gain=HIDDEN**0.5)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", config["vocab_size"], HIDDEN, gain=2)
    vector("model.norm.weight", HIDDEN, 1)
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for name, heads, gain in (("q", HEADS, 3), ("k", KV_HEADS, 3), ("v", KV_HEADS, 1)):
            matrix(f"{prefix}self_attn.{name}_proj", heads * HEAD_DIM, HIDDEN, gain)
            if family == "qwen2":
                vector(f"{prefix}self_attn.{name}_proj.bias", heads * HEAD_DIM, 0)
            elif family == "qwen3" and name in "qk":
                vector(f"{prefix}self_attn.{name}_norm.weight", HEAD_DIM, 2)
        matrix(f"{prefix}self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM, gain=2)
        matrix(f"{prefix}mlp.gate_proj", INTERMEDIATE, HIDDEN)
        matrix(f"{prefix}mlp.up_proj", INTERMEDIATE, HIDDEN)
        matrix(f"{prefix}mlp.down_proj", HIDDEN, INTERMEDIATE, gain=2)
        vector(f"{prefix}input_layernorm.weight", HIDDEN, 1)
        vector(f"{prefix}post_attention_layernorm.weight", HIDDEN, 1)
    return weights


def _config(family: str, num_layers: int, max_context: int, vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_context,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "float32",
        "sliding_window": None,
    }


def _tokenizer() -> Tokenizer:
    """Byte-level BPE: the special tokens, every byte, and a few merges so that words are not all single bytes."""
    vocab = list(SPECIAL_TOKENS) + sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in ("Ġthe", "Ġand", "Ġin", "ing", "er", "on", "re", "at", "Ġa", "ou", "st", "Ġto", "Ġof", "Ġis"):
        whole = word[0]
        for char in word[1:]:
            if (pair := (whole, char)) not in merges:
                merges.append(pair)
            whole += char
            if whole not in vocab:
                vocab.append(whole)

    tokenizer = Tokenizer(BPE(vocab={token: id_ for id_, token in enumerate(vocab)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _tokenizer_config(max_context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_context,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
