"""The engine on a GPU. Skipped where there is none, which so far has been everywhere this was run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drive_runner import Driven, decode, prefill
from tiny_model import make_tiny_model

from diptych.engine.backend import KernelChoice, choose_backend
from diptych.engine.device import DTYPES, find_placement
from diptych.engine.torch_runner import TorchRunner
from diptych.model_folder import ModelFolder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

BLOCK = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def load(
    folder: ModelFolder, device: str, dtype: str, kernels: KernelChoice = "auto", graphs: bool = True
) -> TorchRunner:
    return TorchRunner.load(
        folder,
        kv_cache_bytes=1 << 22,
        block_size=BLOCK,
        device=device,
        dtype=dtype,
        threads=1,
        max_running=8 if graphs else 0,
        kernels=kernels,
    )


def outputs(runner: TorchRunner, num_tokens: int = 20) -> list[list[int]]:
    """Greedy tokens of five sequences that are decoded together."""
    prompts = [[3 + (7 * i + j) % 250 for j in range(5 + 23 * i)] for i in range(5)]
    driven = [Driven(prompt, list(range(10 * i, 10 * i + 10))) for i, prompt in enumerate(prompts)]
    for sequence in driven:
        prefill(runner, sequence, chunk=40)
    decode(runner, driven, num_tokens)
    return [sequence.output for sequence in driven]


def test_float32_gives_the_tokens_of_the_cpu(folder: ModelFolder) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    assert outputs(load(folder, "cuda", "float32")) == outputs(load(folder, "cpu", "float32"))


def test_graphs_change_no_token_in_float32(folder: ModelFolder) -> None:
    with_graphs, without = load(folder, "cuda", "float32"), load(folder, "cuda", "float32", graphs=False)
    assert with_graphs._graphs is not None
    assert without._graphs is None or not without._graphs.buckets
    assert outputs(with_graphs) == outputs(without)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_half_precision_is_close_to_float32(folder: ModelFolder, dtype: str, kernels: KernelChoice) -> None:
    runner = load(folder, "cuda", dtype, kernels)
    assert runner.dtype == dtype
    assert not runner.exact
    same = [
        one[0] == other[0] for one, other in zip(outputs(runner), outputs(load(folder, "cpu", "float32")), strict=True)
    ]
    assert sum(same) >= 4  # rounding may flip a close call


def test_flashinfer_is_used_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("flashinfer")
    place = find_placement("cuda")
    spec = ModelFolder(make_tiny_model(tmp_path / "tiny", head_dim=64)).spec
    backend = choose_backend("auto", spec, place.device, DTYPES["bfloat16"])
    assert backend.kind == "FlashInfer"
