"""Turns a GGUF file of a llama-architecture model into a Hugging Face folder (`diptych.model_folder`).

Weights are dequantized to float32, one tensor in memory at a time, so the folder computes what the GGUF says and not
what the model was before quantization. The folder appears complete or not at all.

Knows nothing about torch or the engine. The GGUF format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from diptych.gguf_tokenizer import build_tokenizer, build_tokenizer_config

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: Path, destination: Path) -> Path:
    """Write the model in `source` as folder `destination`, which must not exist yet. Returns `destination`.

    Raises:
        ValueError: the file is not a GGUF, not a llama-architecture model, or uses a tokenizer or scaling that is
            not supported.
        FileExistsError: `destination` exists, or another process finished the same conversion first.
    """
    if destination.exists():
        raise FileExistsError(f"{destination} exists; remove it to convert again")
    reader = _open(source)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(source, metadata, tied=not any(tensor.name == "output.weight" for tensor in reader.tensors))

    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        _write_json(partial / "config.json", config)
        _write_json(partial / "generation_config.json", _generation_config(config))
        build_tokenizer(source, metadata).save(str(partial / "tokenizer.json"))
        _write_json(partial / "tokenizer_config.json", build_tokenizer_config(metadata, config))
        _write_weights(partial / "model.safetensors", reader.tensors, config)
        partial.chmod(0o755)  # mkdtemp makes it private
        _publish(partial, destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return destination


def _publish(partial: Path, destination: Path) -> None:
    try:
        partial.rename(destination)
    except OSError as error:  # a rename never replaces a folder that has files in it
        if destination.exists():
            raise FileExistsError(f"{destination} was made by another process meanwhile") from error
        raise


def _open(source: Path) -> gguf.GGUFReader:
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{source}: not a GGUF file")
    return gguf.GGUFReader(source)


def _config(source: Path, metadata: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{source}: architecture {architecture!r} is not supported; only 'llama' is")
    if metadata.get("llama.expert_count", 0):
        raise ValueError(f"{source}: mixture-of-experts models are not supported")
    if (scaling := metadata.get("llama.rope.scaling.type", "none")) != "none":
        raise ValueError(
            f"{source}: rope scaling {scaling!r} is not supported in GGUF files; use the safetensors model"
        )

    def need(name: str) -> Any:
        if name not in metadata:
            raise ValueError(f"{source}: metadata {name} is missing")
        return metadata[name]

    num_heads, hidden_size = need("llama.attention.head_count"), need("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": need("llama.feed_forward_length"),
        "num_hidden_layers": need("llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", num_heads),
        "head_dim": metadata.get("llama.attention.key_length", hidden_size // num_heads),
        "max_position_embeddings": need("llama.context_length"),
        # GGUF holds floats in 32 bits: their shortest decimal is the number that was meant.
        "rms_norm_eps": _decimal(need("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(metadata.get("llama.rope.freq_base", 10_000.0)),
        "vocab_size": len(need("tokenizer.ggml.tokens")),
        "tie_word_embeddings": tied,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if config[name] is not None}


def _decimal(value: float) -> float:
    return float(str(np.float32(value)))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(path: Path, tensors: list[gguf.ReaderTensor], config: dict[str, Any]) -> None:
    """Write a safetensors file tensor by tensor; its header needs only shapes, which are known beforehand."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + 4 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]  # GGUF lists the fastest dimension first
        header[_hf_name(tensor.name)] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end

    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data that follows starts on a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in _dequantized(tensors, config):
            file.write(np.ascontiguousarray(weight, dtype="<f4").data)


def _dequantized(tensors: list[gguf.ReaderTensor], config: dict[str, Any]) -> Iterator[NDArray[np.float32]]:
    for tensor in tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            weight = _unpermute(weight, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            weight = _unpermute(weight, config["num_key_value_heads"])
        yield weight


def _unpermute(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo GGUF's order of query and key rows: it interleaves the two halves that rotary embedding pairs up.

    The inverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py. `weight`: [num_heads * head_dim, ...].
    """
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _hf_name(name: str) -> str:
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    prefix, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    module, _, kind = rest.rpartition(".")
    if prefix != "blk" or module not in _LAYER_NAMES:
        raise ValueError(f"tensor {name} has no place in a llama model; the file is of a kind that is not supported")
    return f"model.layers.{layer}.{_LAYER_NAMES[module]}.{kind}"
