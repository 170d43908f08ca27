"""The engine's greedy text equals that of `transformers` on the same weights, and depends on every KV block."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from drive_runner import Driven, decode, generate, prefill, step
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from diptych.engine.backend import KernelChoice
from diptych.engine.kernels.native import load_kernels
from diptych.engine.torch_runner import TorchRunner
from diptych.model_folder import ModelFolder

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BLOCK = 4
NUM_TOKENS = 12
LENGTHS = {"shorter than a block": 3, "k blocks": 8 * BLOCK, "k blocks + 1": 8 * BLOCK + 1, "beyond a tile": 150}


def load(folder: Path, kernels: KernelChoice = "auto") -> TorchRunner:
    return TorchRunner.load(
        ModelFolder(folder), kv_cache_bytes=1 << 22, block_size=BLOCK, device="cpu", threads=1, kernels=kernels
    )


def prompt_of(length: int, salt: int = 0) -> list[int]:
    return [3 + (i * 37 + i * i * 11 + salt * 101) % 256 for i in range(length)]


def oracle_text(oracle: PreTrainedModel, prompt: list[int]) -> list[int]:
    out = oracle.generate(
        torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(scope="module", params=product(FAMILIES, ("native", "torch")), ids="-".join)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TorchRunner, PreTrainedModel]:
    family, kernels = request.param
    if kernels == "native" and load_kernels() is None:
        pytest.skip("there is no C++ compiler")
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / family, family=family)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    oracle.generation_config.pad_token_id = 0
    return load(folder, kernels), oracle


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_greedy_text_equals(pair: tuple[TorchRunner, PreTrainedModel], length: int) -> None:
    runner, oracle = pair
    prompt = prompt_of(length)
    expected = oracle_text(oracle, prompt)
    scattered = list(range(199, 100, -1))
    assert generate(runner, prompt, scattered, NUM_TOKENS) == expected
    assert generate(runner, prompt, scattered, NUM_TOKENS, chunk=7) == expected


def test_greedy_text_equals_in_a_mixed_batch(pair: tuple[TorchRunner, PreTrainedModel]) -> None:
    runner, oracle = pair
    prompts = [prompt_of(length, salt=length) for length in (3, 32, 33, 150)]
    running = [Driven(prompt, list(range(i * 50, i * 50 + 50))) for i, prompt in enumerate(prompts)]
    while any(len(sequence.output) < NUM_TOKENS for sequence in running):
        step(runner, running, chunk=20)  # short prompts decode while the long one is still in its chunks
    for prompt, sequence in zip(prompts, running, strict=True):
        assert sequence.output[:NUM_TOKENS] == oracle_text(oracle, prompt)


def zero(pool: torch.Tensor, block: int) -> None:
    pool[block] = 0


def swap(pool: torch.Tensor, block: int) -> None:
    pool[[block, block + OTHER]] = pool[[block + OTHER, block]]


def make_stale(pool: torch.Tensor, block: int) -> None:
    pool[block] = pool[block + OTHER]


OTHER = 50  # block b + OTHER holds block b of another prompt


@pytest.mark.parametrize("disturb", [zero, swap, make_stale])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_block_matters(tmp_path: Path, seed: int, disturb: Callable[[torch.Tensor, int], None]) -> None:
    """The premise of all tests that use the tiny model to prove that the right KV arrived.

    Two full blocks of the same sequence may be swapped without any effect: keys carry their position, and attention
    sums over a set. So the swap here is between two sequences.
    """
    num_tokens, num_blocks = 24, 9
    runner = load(make_tiny_model(tmp_path / "model", seed))
    prompt, table = prompt_of(num_blocks * BLOCK), list(range(25))
    prefill(runner, Driven(prompt_of(len(prompt), salt=1), [block + OTHER for block in table]))
    pool = runner._cache.pool
    others = pool.clone()
    expected = generate(runner, prompt, table, num_tokens)

    for block in range(num_blocks):
        pool.copy_(others)
        sequence = Driven(prompt, table)
        prefill(runner, sequence)
        disturb(pool, block)
        decode(runner, [sequence], num_tokens)
        assert sequence.output[0] == expected[0]
        assert sequence.output != expected, f"block {block} does not matter"
