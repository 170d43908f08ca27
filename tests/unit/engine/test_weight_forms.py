"""What each form of the weights makes of a model's tensors, and what that takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from tiny_model import make_tiny_model

from diptych.engine.kernels.native import Kernels, load_kernels
from diptych.engine.quantization import dequantize, quantize
from diptych.engine.weights import load_weights
from diptych.model_folder import ModelFolder

CPU = torch.device("cpu")
ROWS = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([4, 0, 200])


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels | None:
    found = load_kernels() if request.param == "native" else None
    if request.param == "native" and found is None:
        pytest.skip("there is no C++ compiler")
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_int8_quantizes_every_matrix_and_keeps_biases(tmp_path: Path, kernels: Kernels | None, tied: bool) -> None:
    folder = make_tiny_model(tmp_path / "tiny", family="qwen2", tie_word_embeddings=tied)
    tensors = {name: torch.tensor(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    loaded = load_weights(ModelFolder(folder), torch.float32, CPU, form="int8", kernels=kernels)

    def rounded(*names: str) -> torch.Tensor:
        return dequantize(quantize(torch.cat([tensors[f"{name}.weight"] for name in names])))

    assert loaded.takes_single_rows == (kernels is not None)
    head = "model.embed_tokens" if tied else "lm_head"
    assert torch.equal(loaded.embedding[TOKENS], rounded("model.embed_tokens")[TOKENS])
    torch.testing.assert_close(loaded.head(ROWS), ROWS @ rounded(head).T, rtol=1e-5, atol=1e-4)
    names = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    bias = torch.cat([tensors[f"{name}.bias"] for name in names])
    torch.testing.assert_close(loaded.layers[1].qkv(ROWS), ROWS @ rounded(*names).T + bias, rtol=1e-5, atol=1e-4)
    wide = ROWS.repeat(1, 2)
    down = rounded("model.layers.0.mlp.down_proj")
    torch.testing.assert_close(loaded.layers[0].down(wide), wide @ down.T, rtol=1e-5, atol=1e-4)


def test_int8_takes_a_fraction_of_the_bytes(tmp_path: Path) -> None:
    folder = ModelFolder(make_tiny_model(tmp_path / "tiny", tie_word_embeddings=True))
    kernels = load_kernels()
    if kernels is None:
        pytest.skip("there is no C++ compiler")
    full = load_weights(folder, torch.float32, CPU).num_bytes
    layers = 2 * (128 * 64 + 64 * 64 + 256 * 64 + 64 * 128)  # qkv, output, gate and up, down: counted by hand
    assert full == 4 * (layers + 2 * folder.spec.vocab_size * 64)  # a tied table is kept twice
    table = -(-folder.spec.vocab_size // 64) * 64 * 64  # and once in int8, in whole tiles
    int8 = load_weights(folder, torch.float32, CPU, form="int8", kernels=kernels).num_bytes
    assert int8 == (layers + table) * (1 + 4 / 64)


def test_int8_without_kernels_says_that_it_saves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = ModelFolder(make_tiny_model(tmp_path / "tiny"))
    load_weights(folder, torch.float32, CPU, form="int8")
    assert "saves neither time nor memory" in caplog.text


def test_int8_is_for_float32_on_cpu(tmp_path: Path) -> None:
    folder = ModelFolder(make_tiny_model(tmp_path / "tiny"))
    with pytest.raises(ValueError, match=r"float32 on CPU only; for torch\.bfloat16 on cpu use full weights"):
        load_weights(folder, torch.bfloat16, CPU, form="int8")
