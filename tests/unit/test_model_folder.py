from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import CHAT_TEMPLATE, make_tiny_model

from diptych.model_folder import ModelFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def edit(folder: Path, name: str = "config.json", **fields: Any) -> Path:
    content = json.loads((folder / name).read_text()) | fields
    (folder / name).write_text(json.dumps(content))
    return folder


def test_reads_the_spec(folder: Path) -> None:
    spec = ModelFolder(folder).spec
    assert (spec.family, spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == ("llama", 2, 4, 2, 16)
    assert (spec.max_context, spec.eos_token_ids, spec.bos_token_id) == (2048, (2,), 1)
    assert (spec.tie_embeddings, spec.attention_bias, spec.qk_norm) == (False, False, False)
    assert spec.block_bytes(16, 4) == 2 * 2 * 2 * 16 * 16 * 4


@pytest.mark.parametrize(
    ("family", "attention_bias", "qk_norm"),
    [("mistral", False, False), ("qwen2", True, False), ("qwen3", False, True)],
)
def test_families_differ_where_they_do(tmp_path: Path, family: str, attention_bias: bool, qk_norm: bool) -> None:
    spec = ModelFolder(make_tiny_model(tmp_path / "tiny", family=family)).spec
    assert (spec.family, spec.attention_bias, spec.qk_norm) == (family, attention_bias, qk_norm)


def test_generation_config_wins_over_config_and_may_list_several_eos(folder: Path) -> None:
    edit(folder, eos_token_id=0)
    edit(folder, "generation_config.json", eos_token_id=[2, 0])
    assert ModelFolder(folder).spec.eos_token_ids == (2, 0)
    (folder / "generation_config.json").unlink()
    assert ModelFolder(folder).spec.eos_token_ids == (0,)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
)
def test_reads_rope_scaling_in_both_spellings(folder: Path, fields: dict[str, Any]) -> None:
    scaling = ModelFolder(edit(folder, **fields)).spec.rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor, scaling.original_max_position) == ("linear", 2.0, 2048)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"GPT2LMHeadModel.*LlamaForCausalLM, MistralForCausalLM"),
        ({"architectures": []}, "unsupported architecture"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 512}, "sliding-window"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "sliding-window"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"eos_token_id": ["</s>"]}, "eos"),
    ],
)
def test_refuses_what_it_cannot_compute(folder: Path, fields: dict[str, Any], message: str) -> None:
    (folder / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=message) as caught:
        ModelFolder(edit(folder, **fields))
    assert "config.json" in str(caught.value)


def test_a_mistral_without_the_key_has_its_familys_default_window(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny", family="mistral", max_context=8192)
    ModelFolder(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="sliding-window"):
        ModelFolder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_refuses_weights_that_can_run_code(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ValueError, match=r"can run code; convert them to safetensors") as caught:
        ModelFolder(folder)
    assert name in str(caught.value)


def test_ignores_pickles_beside_safetensors(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert ModelFolder(folder).weight_files() == [folder / "model.safetensors"]


def test_a_router_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    opened = ModelFolder(folder)
    assert opened.chat_template == CHAT_TEMPLATE
    assert opened.tokenizer_path.name == "tokenizer.json"
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        opened.weight_files()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_names_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: missing"):
        ModelFolder(folder).tokenizer_path  # noqa: B018


def test_names_a_missing_folder_and_broken_json(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        ModelFolder(tmp_path / "nowhere")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        ModelFolder(folder)


def test_chat_template_from_its_own_file_then_from_a_list_then_none(folder: Path) -> None:
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    edit(folder, "tokenizer_config.json", chat_template=named)
    assert ModelFolder(folder).chat_template == "d"
    (folder / "chat_template.jinja").write_text("j")
    assert ModelFolder(folder).chat_template == "j"
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert ModelFolder(folder).chat_template is None


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", "sub/model.safetensors"])
def test_an_index_cannot_point_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ValueError, match="is not the name of a safetensors file"):
        ModelFolder(folder).weight_files()


def test_an_index_must_name_files_that_exist(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-2\.safetensors: missing"):
        ModelFolder(folder).weight_files()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4],
        lambda data: data[:5],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: data.replace(b'"F32"', b'"Q99"', 1),
        lambda data: data.replace(b'"shape":[', b'"shape":[2,', 1),
    ],
)
def test_refuses_damaged_safetensors(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        ModelFolder(folder).headers()


class TestFingerprint:
    def test_is_the_same_for_a_copy_elsewhere(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "other name")
        assert ModelFolder(folder).fingerprint("float32", 16) == ModelFolder(copy).fingerprint("float32", 16)

    def test_differs_in_dtype_and_block_size(self, folder: Path) -> None:
        opened = ModelFolder(folder)
        assert len({opened.fingerprint(dtype, size) for dtype in ("float32", "bfloat16") for size in (8, 16)}) == 4

    def test_differs_in_weights_of_the_same_shape(self, folder: Path, tmp_path: Path) -> None:
        other = make_tiny_model(tmp_path / "other", seed=1)
        assert ModelFolder(folder).fingerprint("float32", 16) != ModelFolder(other).fingerprint("float32", 16)

    def test_sees_one_changed_tensor_among_many(self, folder: Path) -> None:
        opened = ModelFolder(folder)
        before = opened.fingerprint("float32", 16)
        file = folder / "model.safetensors"
        tensor = opened.headers()[file].tensors["model.layers.1.mlp.up_proj.weight"]
        data = bytearray(file.read_bytes())
        data[tensor.end - 1] ^= 1
        file.write_bytes(data)
        assert opened.fingerprint("float32", 16) != before

    @pytest.mark.parametrize("fields", [{"rope_theta": 5e5}, {"rms_norm_eps": 1e-6}, {"max_position_embeddings": 4096}])
    def test_differs_in_config_that_matters(self, folder: Path, fields: dict[str, Any]) -> None:
        before = ModelFolder(folder).fingerprint("float32", 16)
        assert ModelFolder(edit(folder, **fields)).fingerprint("float32", 16) != before

    def test_does_not_see_config_that_does_not(self, folder: Path) -> None:
        before = ModelFolder(folder).fingerprint("float32", 16)
        assert ModelFolder(edit(folder, transformers_version="5")).fingerprint("float32", 16) == before
