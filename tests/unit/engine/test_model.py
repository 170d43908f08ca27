"""The runner over a tiny model: what a row computes depends on its own sequence alone, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drive_runner import Driven, decode, generate, prefill, step
from tiny_model import make_tiny_model

from diptych.engine.backend import KernelChoice
from diptych.engine.interface import Draw, Plan, Row
from diptych.engine.kernels.native import load_kernels
from diptych.engine.rope import rope_frequencies
from diptych.engine.torch_runner import TorchRunner
from diptych.messages import SamplingParams
from diptych.model_folder import ModelFolder

BLOCK = 8
PROMPT = [3 + i * 29 % 256 for i in range(150)]  # longer than an attention tile


def load(folder: Path, kv_cache_bytes: int = 1 << 22, kernels: KernelChoice = "auto") -> TorchRunner:
    return TorchRunner.load(
        ModelFolder(folder),
        kv_cache_bytes=kv_cache_bytes,
        block_size=BLOCK,
        device="cpu",
        threads=1,
        kernels=kernels,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["native", "torch"])
def runner(request: pytest.FixtureRequest, folder: Path) -> TorchRunner:
    if request.param == "native" and load_kernels() is None:
        pytest.skip("there is no C++ compiler")
    return load(folder, kernels=request.param)


def kv_of(runner: TorchRunner, sequence: Driven) -> torch.Tensor:
    """[num_computed, layers, 2, kv_heads, head_dim]"""
    blocks = runner._cache.pool[sequence.blocks[: -(-sequence.num_computed // BLOCK)]]
    return blocks.permute(0, 4, 1, 2, 3, 5).flatten(0, 1)[: sequence.num_computed].clone()


@pytest.mark.parametrize("chunk", [1, 7, 8, 64, 149])
def test_kv_is_bit_equal_whatever_the_chunks(runner: TorchRunner, chunk: int) -> None:
    whole, cut = Driven(PROMPT, list(range(30))), Driven(PROMPT, list(range(59, 29, -1)))
    prefill(runner, whole)
    prefill(runner, cut, chunk)
    assert torch.equal(kv_of(runner, whole), kv_of(runner, cut))


def test_kv_is_bit_equal_whoever_is_in_the_batch(runner: TorchRunner) -> None:
    alone = Driven(PROMPT, list(range(30)))
    prefill(runner, alone)
    decode(runner, [alone], 10)
    together = Driven(PROMPT, list(range(30, 60)))
    mates = [Driven(PROMPT[i : i * 5 + 2], list(range(60 + i * 6, 66 + i * 6))) for i in range(6)]
    step(runner, [*mates[:2], together, *mates[2:]])
    decode(runner, [*mates, together], 10)
    assert together.output == alone.output
    assert torch.equal(kv_of(runner, together), kv_of(runner, alone))


def test_decoding_leaves_the_kv_that_prefilling_would(runner: TorchRunner) -> None:
    decoded = Driven(PROMPT, list(range(30)))
    prefill(runner, decoded)
    decode(runner, [decoded], 10)
    replayed = Driven(PROMPT + decoded.output[:-1], list(range(30, 60)))
    prefill(runner, replayed)
    assert torch.equal(kv_of(runner, replayed), kv_of(runner, decoded))
    assert replayed.output == decoded.output[-1:]


def test_received_kv_continues_as_computed_kv_does(runner: TorchRunner) -> None:
    """Blocks copied from elsewhere into other slots: the same tokens, logits and KV as without the move."""
    here, there = Driven(PROMPT, list(range(30))), Driven(PROMPT, list(range(59, 29, -1)))
    prefill(runner, here)
    there.output, there.num_computed = list(here.output), here.num_computed
    num_blocks = -(-len(PROMPT) // BLOCK)
    runner._cache.pool[there.blocks[:num_blocks]] = runner._cache.pool[here.blocks[:num_blocks]]
    decode(runner, [here], 12)
    mate = Driven(PROMPT[5:70], list(range(60, 75)))
    prefill(runner, mate)
    decode(runner, [mate, there], 12)
    assert there.output == here.output
    assert torch.equal(kv_of(runner, there), kv_of(runner, here))


def test_nothing_left_in_a_block_reaches_its_next_owner(folder: Path) -> None:
    clean, dirty = load(folder), load(folder)
    dirty._cache.pool.fill_(torch.nan)
    table = list(range(40, 10, -1))
    assert generate(dirty, PROMPT[:37], table, 20, chunk=10) == generate(clean, PROMPT[:37], table, 20)


def test_a_partly_filled_block_is_zero_beyond_its_tokens(runner: TorchRunner) -> None:
    runner._cache.pool.fill_(1)
    prefill(runner, Driven(PROMPT[:11], [4, 9]))
    assert not runner._cache.pool[9, :, :, :, 3:].any()
    runner.clear_tail(4, 2)
    assert not runner._cache.pool[4, :, :, :, 2:].any()
    assert runner._cache.pool[4, :, :, :, :2].all()


def test_copies_happen_before_rows(runner: TorchRunner) -> None:
    sequence = Driven(PROMPT[:20], [0, 1, 2])
    prefill(runner, sequence)
    kv = kv_of(runner, sequence)
    row = Row(1, [7], 20, [0, 1, 5])
    runner.execute(Plan([row], copies=[(2, 5)]))
    copied = Driven(PROMPT[:20], [0, 1, 5], num_computed=20)
    assert torch.equal(kv_of(runner, copied), kv)
    assert runner._cache.pool[5, :, :, :, 4].any()
    assert not runner._cache.pool[2, :, :, :, 4].any()


def test_several_draws_come_from_one_rows_logits(runner: TorchRunner) -> None:
    sampling = SamplingParams(max_tokens=4, seed=11, n=16, temperature=2.0, logprobs=1)
    draws = [Draw(choice, 0, sampling, PROMPT, []) for choice in range(16)]
    rows = [Row(0, [5], 0, [1]), Row(1, PROMPT, 0, list(range(30, 60)), draws), Row(2, [9, 8], 0, [2], draws[:1])]
    nothing, drawn, other = runner.execute(Plan(rows))
    assert nothing == []
    assert [one.choice for one in drawn] == list(range(16))
    assert len({one.token_id for one in drawn}) > 1
    assert len({one.logprob.top[0] for one in drawn if one.logprob}) == 1
    assert other[0].logprob is not None
    assert drawn[0].logprob is not None
    assert other[0].logprob.top != drawn[0].logprob.top


def test_a_plan_of_copies_alone(runner: TorchRunner) -> None:
    assert runner.execute(Plan([], copies=[(1, 2)])) == []
    assert torch.equal(runner._cache.pool[1], runner._cache.pool[2])


def test_says_what_it_owns(runner: TorchRunner, folder: Path) -> None:
    assert runner.block_bytes == ModelFolder(folder).spec.block_bytes(BLOCK, 4)
    assert runner.num_blocks == (1 << 22) // runner.block_bytes
    assert runner.pool_address == runner._cache.pool.data_ptr()
    assert runner.dtype == "float32"
    assert runner.exact
    assert runner.attention_name in ("C++ paged attention", "torch paged attention")
    with pytest.raises(ValueError, match="kv_cache_bytes is 100; one block of 8 tokens takes"):
        load(folder, kv_cache_bytes=100)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024, "attention_factor": 1.5},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rope_frequencies_equal_those_of_transformers(tmp_path: Path, rope: dict[str, object]) -> None:
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    folder = make_tiny_model(tmp_path / "tiny", rope_parameters={"rope_theta": 10000.0, **rope})
    oracle = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))
    frequencies, scale = rope_frequencies(ModelFolder(folder).spec)
    assert torch.equal(frequencies, oracle.inv_freq)
    assert scale == pytest.approx(oracle.attention_scaling)
