from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_model import CHAT_TEMPLATE, make_tiny_model
from tokenizers import Tokenizer

from diptych.gguf_model import convert_gguf
from diptych.model_folder import ModelFolder

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUANTIZED = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "source")


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return f"{NAMES[name.removesuffix('.weight')]}.weight"


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """As llama.cpp's converter writes query and key rows."""
    shape = (num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(source: Path, path: Path, *, quantize: bool = False, tied: bool = False, **metadata: Any) -> Path:
    """Write the tiny model in `source` as GGUF, the way llama.cpp would."""
    spec = ModelFolder(source).spec
    writer = gguf.GGUFWriter(path, metadata.get("architecture", "llama"))
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    if "rope_scaling" in metadata:
        writer.add_rope_scaling_type(metadata["rope_scaling"])

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = [tokenizer.id_to_token(id_) for id_ in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(metadata.get("pre", "gpt-2"))
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in merges_of(tokenizer)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in load_file(source / "model.safetensors").items():
        if tied and name == "lm_head.weight":
            continue
        heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(name.split(".")[-2])
        weight = permute(weight, heads) if heads else weight
        if quantize and weight.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quantize(weight, QUANTIZED), raw_dtype=QUANTIZED)
        else:
            writer.add_tensor(gguf_name(name), weight)
    if "extra_tensor" in metadata:
        writer.add_tensor(metadata["extra_tensor"], np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merges_of(tokenizer: Tokenizer) -> list[list[str]]:
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


def test_float_weights_come_back_exactly(source: Path, tmp_path: Path) -> None:
    converted = convert_gguf(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(converted / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight, err_msg=name)
    assert ModelFolder(converted).spec == ModelFolder(source).spec


def test_quantized_weights_come_back_as_the_gguf_has_them(source: Path, tmp_path: Path) -> None:
    converted = convert_gguf(write_gguf(source, tmp_path / "m.gguf", quantize=True), tmp_path / "out")
    after = load_file(converted / "model.safetensors")
    for name, weight in load_file(source / "model.safetensors").items():
        expected = gguf.dequantize(gguf.quantize(weight, QUANTIZED), QUANTIZED) if weight.ndim == 2 else weight
        np.testing.assert_array_equal(after[name], expected, err_msg=name)


def test_without_an_output_matrix_the_embeddings_are_tied(source: Path, tmp_path: Path) -> None:
    converted = convert_gguf(write_gguf(source, tmp_path / "m.gguf", tied=True), tmp_path / "out")
    assert ModelFolder(converted).spec.tie_embeddings
    assert "lm_head.weight" not in load_file(converted / "model.safetensors")


def test_tokenizer_and_template_come_along(source: Path, tmp_path: Path) -> None:
    converted = convert_gguf(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "out")
    before, after = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (source, converted))
    text = "<|im_start|>user\nIs the naïve café 東京 in 2024?<|im_end|>"
    assert after.encode(text).ids == before.encode(text).ids
    assert after.decode(after.encode(text).ids, skip_special_tokens=False) == text
    assert ModelFolder(converted).chat_template == CHAT_TEMPLATE
    assert ModelFolder(converted).tokenizer_config["eos_token"] == "<|im_end|>"


def test_smollm_splits_numbers_into_digits(source: Path, tmp_path: Path) -> None:
    converted = convert_gguf(write_gguf(source, tmp_path / "m.gguf", pre="smollm"), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("in 2024")]
    assert words == ["in", "Ġ", "2", "0", "2", "4"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma'"),
        ({"pre": "qwen2"}, "pre-tokenizer 'qwen2'"),
        ({"rope_scaling": gguf.RopeScalingType.YARN}, "rope scaling 'yarn'"),
        ({"extra_tensor": "rope_freqs.weight"}, r"rope_freqs\.weight"),
    ],
)
def test_refuses_what_would_come_out_wrong_and_leaves_nothing(
    source: Path, tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    file = write_gguf(source, tmp_path / "m.gguf", **metadata)
    out = tmp_path / "converted" / "out"
    with pytest.raises(ValueError, match=message):
        convert_gguf(file, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_refuses_other_files_and_existing_folders(source: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="not a GGUF file"):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    with pytest.raises(FileExistsError):
        convert_gguf(tmp_path / "m.gguf", source)


def test_a_conversion_that_finished_first_is_left_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write_gguf(source, tmp_path / "m.gguf"), tmp_path / "converted" / "out"

    def finish_first(*_: object) -> None:
        out.mkdir()
        (out / "config.json").write_text("theirs")

    monkeypatch.setattr("diptych.gguf_model._write_weights", finish_first)
    with pytest.raises(FileExistsError, match="another process"):
        convert_gguf(file, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "config.json").read_text() == "theirs"
