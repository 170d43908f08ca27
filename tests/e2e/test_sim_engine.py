"""The simulated engine in real processes: real gRPC, Redis, NIXL and router, but no model. What it says is a function
of all KV it reads, so the right tokens prove that the right blocks were computed, moved, cached and read."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio
from process_cluster import ProcessCluster
from processes import spawn, stop
from reference import BLOCK, random_prompt
from tiny_model import make_tiny_model
from waiting import until

from diptych.config import RouterConfig, WorkerConfig
from diptych.engine.sim.loading import vocabulary_of
from diptych.engine.sim.runner import Chain
from diptych.messages import Role, SamplingParams, WorkerRecord
from diptych.model_folder import ModelFolder
from kv_transfer.identity import identity_of

CELL_BYTES = 512  # of a token's KV
FAST = "fixed:prefill_ms=4,decode_ms=1"
NUM_TOKENS = 12
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have it for a model that is too large for their machine: without weights."""
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    (folder / "model.safetensors").unlink()
    return folder


def sim_cluster(model: Path, redis_url: str, logs: Path, **changes: Any) -> ProcessCluster:
    shared = {"engine": "sim", "sim_cell_bytes": CELL_BYTES}
    worker = {**shared, "sim_timing": FAST, "sim_kv_tokens": 8_192, **changes.pop("worker", {})}
    return ProcessCluster(
        model, redis_url, logs, worker=worker, router={**shared, "remote_prefill": "always"}, **changes
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    model: Path, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ProcessCluster]:
    async with sim_cluster(model, valkey_url, tmp_path_factory.mktemp("logs"), prefill=2, decode=2) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def never(cluster: ProcessCluster) -> httpx.AsyncClient:
    """A second router on the same workers: here decode computes every prompt itself."""
    return await cluster.add_router(remote_prefill="never")


@pytest.fixture(scope="module")
def chain(model: Path) -> Chain:
    folder = ModelFolder(model)
    config = RouterConfig(model=str(model), served_model="tiny", engine="sim", sim_cell_bytes=CELL_BYTES)
    return Chain(identity_of(folder, config).fingerprint, CELL_BYTES, vocabulary_of(folder.spec))


def expected(chain: Chain, prompt: list[int], max_tokens: int = NUM_TOKENS) -> list[int]:
    return chain.reference(prompt, SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0))


async def ask(client: httpx.AsyncClient, prompt: list[int], **fields: Any) -> dict[str, Any]:
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "return_report": True,
    }
    answer = await client.post("/v1/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


def tokens(answer: dict[str, Any]) -> list[int]:
    said: list[int] = answer["choices"][0]["token_ids"]
    return said


@pytest.mark.parametrize("length", [5, 2 * BLOCK, 150, 700], ids=["in a block", "whole blocks", "chunks", "many"])
async def test_wherever_it_is_computed_it_says_the_same(
    cluster: ProcessCluster, never: httpx.AsyncClient, chain: Chain, length: int
) -> None:
    prompt = random_prompt(length, seed=length)
    remote = await ask(cluster.http, prompt, cache_salt="remote")
    assert remote["diptych"]["prefill_worker"]
    blocks = -(-length // BLOCK)
    assert remote["diptych"]["transfer_bytes"] == blocks * BLOCK * CELL_BYTES
    again = await ask(cluster.http, prompt, cache_salt="remote")
    local = await ask(never, prompt, cache_salt="local")
    assert local["diptych"]["prefill_worker"] is None
    cached = (length - 1) // BLOCK * BLOCK
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    assert tokens(remote) == tokens(again) == tokens(local) == expected(chain, prompt)


async def test_nobody_takes_it_for_a_real_one(cluster: ProcessCluster) -> None:
    (entry,) = (await cluster.http.get("/v1/models")).json()["data"]
    assert entry["simulated"] is True
    assert (await cluster.health())["details"]["simulated"] is True


async def test_its_workers_do_without_torch(cluster: ProcessCluster) -> None:
    for worker in cluster.workers:
        loaded = {mapped.path for mapped in psutil.Process(worker.process.pid).memory_maps()}
        assert not [path for path in loaded if "libtorch" in path]


async def test_a_real_engine_of_the_same_name_is_refused(cluster: ProcessCluster, tmp_path: Path) -> None:
    real = make_tiny_model(tmp_path / "tiny")
    config = WorkerConfig(
        role=Role.DECODE,
        model=str(real),
        served_model="tiny",
        cluster=cluster.name,
        redis_url=cluster.redis_url,
        kv_cache_bytes=1 << 20,
    )
    worker = await spawn("decode_worker", config, WorkerRecord, cluster.logs)
    worker_id = worker.record.worker_id

    async def refused() -> bool:
        return any(f"{worker_id} is refused" in reason for reason in (await cluster.health())["reasons"])

    await until(refused, "the router refuses the real engine")
    assert await stop(worker) == 0


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
async def test_a_wrong_block_is_refused_or_heard(
    model: Path, valkey_url: str, tmp_path: Path, chain: Chain, checked: bool
) -> None:
    """The prefill worker pushes another block in the place of the first. With checksums decode refuses it and computes
    the prompt itself; without, it goes on from wrong KV, and everything it says is something else."""
    before = {Role.PREFILL: (sys.executable, "-m", "tests.support.wrong_blocks")}
    prompt = random_prompt(150, seed=1)
    async with sim_cluster(
        model, valkey_url, tmp_path, before=before, worker={"verify_checksums": float(checked)}
    ) as cluster:
        answer = await ask(cluster.http, prompt)
        stats = await cluster.stats(cluster.of_role(Role.DECODE)[0])
        log = cluster.text_of_logs()
    right = expected(chain, prompt)
    assert tokens(answer)[0] == right[0]  # prefill drew it
    assert ("kv_damaged" in log) is checked
    assert (stats.prompt_tokens_computed_total > 0) is checked
    if checked:
        assert tokens(answer) == right
    else:  # of a few hundred tokens, one or the other may be right by chance
        assert sum(ours == theirs for ours, theirs in zip(tokens(answer)[1:], right[1:], strict=True)) <= 2
