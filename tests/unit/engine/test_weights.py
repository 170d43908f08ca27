from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_model import make_tiny_model

from diptych.engine.weights import ModelWeights, load_weights
from diptych.model_folder import ModelFolder

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def load(folder: Path) -> ModelWeights:
    return load_weights(ModelFolder(folder), torch.float32, CPU)


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Replace tensors (dots in names written as __); None removes one."""
    tensors = load_file(folder / "model.safetensors") | {k.replace("__", "."): v for k, v in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")


def test_fuses_projections_in_order(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    layer = load(folder).layers[1]
    rows = torch.randn(5, 64)
    for fused, module, names in ((layer.qkv, "self_attn", "qkv"), (layer.gate_up, "mlp", ("gate", "up"))):
        parts = [rows @ torch.tensor(tensors[f"model.layers.1.{module}.{name}_proj.weight"]).T for name in names]
        torch.testing.assert_close(fused(rows), torch.cat(parts, dim=1))


def test_biases_are_fused_too(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny", family="qwen2")
    tensors = load_file(folder / "model.safetensors")
    expected = np.concatenate([tensors[f"model.layers.0.self_attn.{name}_proj.bias"] for name in "qkv"])
    torch.testing.assert_close(load(folder).layers[0].qkv(torch.zeros(3, 64))[2], torch.tensor(expected))


def test_shards_load_like_one_file(folder: Path) -> None:
    whole = load(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for index, part in enumerate((names[::2], names[1::2])):
        file = f"model-{index}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    rows = torch.randn(4, 64)
    sharded = load(folder)
    assert torch.equal(sharded.head(rows), whole.head(rows))
    assert torch.equal(sharded.layers[1].down(rows.repeat(1, 2)), whole.layers[1].down(rows.repeat(1, 2)))


def test_tied_head_is_the_embedding_and_a_second_copy_is_ignored(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny", tie_word_embeddings=True)
    rewrite(folder, lm_head__weight=np.zeros((3, 64), dtype=np.float32))
    weights = load(folder)
    rows = torch.randn(2, 64)
    torch.testing.assert_close(weights.head(rows), rows @ weights.embedding.T)


def test_half_precision_files_load_as_float32(folder: Path) -> None:
    rewrite(folder, model__norm__weight=np.full(64, 0.5, dtype=np.float16))
    assert torch.equal(load(folder).norm, torch.full((64,), 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"tensor model\.norm\.weight is missing \(1 of 21 are\)"),
        (np.zeros(32, dtype=np.float32), r"model\.safetensors: tensor model\.norm\.weight is \(32,\).*\(64,\)"),
        (np.zeros(64, dtype=np.int8), r"model\.safetensors: tensor model\.norm\.weight is I8"),
    ],
)
def test_refuses_a_wrong_tensor_by_name(folder: Path, change: np.ndarray | None, message: str) -> None:
    rewrite(folder, model__norm__weight=change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_refuses_a_tensor_it_would_have_to_leave_out(folder: Path) -> None:
    rewrite(folder, model__layers__0__self_attn__q_proj__bias=np.zeros(64, dtype=np.float32))
    with pytest.raises(ValueError, match=r"q_proj\.bias is not part of the model that config\.json describes"):
        load(folder)


def test_reports_progress(folder: Path) -> None:
    seen: list[float] = []
    load_weights(ModelFolder(folder), torch.float32, CPU, lambda stage, done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
