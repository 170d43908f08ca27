"""Greedy tokens through the cluster equal those of one engine in one process, and those of `transformers`, wherever the
prompt's prefix was cached. What was cached where is read from the request's own report: no case passes by accident."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from process_cluster import ProcessCluster
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM

from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.limits import Limits
from diptych.engine.torch_runner import TorchRunner
from diptych.messages import SamplingParams
from diptych.model_folder import ModelFolder

BLOCK = 16
NUM_TOKENS = 12
LENGTHS = {"shorter than a block": 5, "k blocks": 2 * BLOCK, "k blocks + 1": 2 * BLOCK + 1, "several chunks": 150}
by_length = pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
pytestmark = pytest.mark.asyncio(loop_scope="module")


def prompt_of(length: int) -> list[int]:
    return [3 + (i * 37 + i * i * 11 + length) % 256 for i in range(length)]


def cacheable(length: int) -> int:
    """Tokens of a prompt that a prefix cache can hold: full blocks, and one token is always computed."""
    return (length - 1) // BLOCK * BLOCK


class Cluster:
    """Two routers on one pair of workers: one always uses the prefill worker, the other never."""

    def __init__(self, processes: ProcessCluster, always: httpx.AsyncClient, never: httpx.AsyncClient) -> None:
        self.processes, self.always, self.never = processes, always, never

    async def ask(self, client: httpx.AsyncClient, salt: str, length: int, max_tokens: int = NUM_TOKENS) -> Answer:
        body = {
            "model": "tiny",
            "prompt": prompt_of(length),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_salt": salt,
            "return_token_ids": True,
            "return_report": True,
        }
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return Answer(answer.json())


class Answer:
    def __init__(self, body: dict[str, Any]) -> None:
        self.tokens: list[int] = body["choices"][0]["token_ids"]
        report = body["diptych"]
        self.cached_tokens = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        sources = report["prompt_tokens"]
        self.prefill = sources.get(report["prefill_worker"])
        self.decode = sources.get(report["decode_worker"])


def source(computed: int = 0, local_cache: int = 0, transferred: int = 0) -> dict[str, int]:
    return {"computed": computed, "local_cache": local_cache, "transferred": transferred}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, list[int]]:
    """What one engine in this process says, checked against `transformers`."""
    runner = TorchRunner.load(ModelFolder(model), kv_cache_bytes=8 << 20, block_size=BLOCK, device="cpu", threads=1)
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    texts = {}
    for length in LENGTHS.values():
        engine = Engine(runner, Limits(64, 8, BLOCK, 2048))
        texts[length] = single_engine(engine, prompt_of(length))
        tokens = torch.tensor([prompt_of(length)])
        out = oracle.generate(tokens, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert texts[length] == out[0, length:].tolist()
    return texts


def single_engine(engine: Engine, prompt: list[int]) -> list[int]:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, seed=0, temperature=0.0)
    engine.add(EngineRequest("single", Kind.LOCAL, tuple(prompt), sampling, bytes(32)))
    tokens: list[int] = []
    while engine.has_work:
        tokens += [token for update in engine.step().updates for token in update.token_ids]
    return tokens


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(model: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    processes = ProcessCluster(model, valkey_url, tmp_path_factory.mktemp("logs"), router={"remote_prefill": "always"})
    async with processes:
        local = await processes.start_router(remote_prefill="never")
        async with httpx.AsyncClient(base_url=f"http://{local.record.http_address}", trust_env=False) as never:
            await processes.wait_healthy(never)
            yield Cluster(processes, processes.http, never)


@by_length
async def test_cold(cluster: Cluster, expected: dict[int, list[int]], length: int) -> None:
    answer = await cluster.ask(cluster.always, "cold", length)
    assert answer.tokens == expected[length]
    assert answer.prefill == source(computed=length)
    assert answer.decode == source(transferred=length)
    assert answer.cached_tokens == 0


@by_length
async def test_prefix_cached_on_prefill(cluster: Cluster, expected: dict[int, list[int]], length: int) -> None:
    await cluster.ask(cluster.always, "on-prefill", length, max_tokens=1)  # ends at prefill: nothing is delivered
    answer = await cluster.ask(cluster.always, "on-prefill", length)
    assert answer.tokens == expected[length]
    assert answer.prefill == source(computed=length - cacheable(length), local_cache=cacheable(length))
    assert answer.decode == source(transferred=length)
    assert answer.cached_tokens == cacheable(length)


@by_length
async def test_prefix_cached_on_decode(cluster: Cluster, expected: dict[int, list[int]], length: int) -> None:
    first = await cluster.ask(cluster.never, "on-decode", length)
    assert first.prefill is None
    assert first.tokens == expected[length]
    answer = await cluster.ask(cluster.always, "on-decode", length)
    assert answer.tokens == expected[length]
    assert answer.prefill == source(computed=length)
    assert answer.decode == source(local_cache=cacheable(length), transferred=length - cacheable(length))
    assert answer.cached_tokens == 0  # decode's cache spared the transfer, not the computation


@by_length
async def test_prefix_cached_on_both(cluster: Cluster, expected: dict[int, list[int]], length: int) -> None:
    await cluster.ask(cluster.always, "on-both", length)
    answer = await cluster.ask(cluster.always, "on-both", length)
    assert answer.tokens == expected[length]
    assert answer.prefill == source(computed=length - cacheable(length), local_cache=cacheable(length))
    assert answer.decode == source(local_cache=cacheable(length), transferred=length - cacheable(length))
    assert answer.cached_tokens == cacheable(length)


@by_length
async def test_computed_by_decode_alone(cluster: Cluster, expected: dict[int, list[int]], length: int) -> None:
    for computed in (length, length - cacheable(length)):  # cold, then cached
        answer = await cluster.ask(cluster.never, "alone", length)
        assert answer.tokens == expected[length]
        assert answer.prefill is None
        assert answer.decode == source(computed=computed, local_cache=length - computed)
