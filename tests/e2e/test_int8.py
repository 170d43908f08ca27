"""A cluster that serves int8 weights: the same tokens as one int8 engine, and no KV from workers with full weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from fitted_model import make_fitted_model
from process_cluster import ProcessCluster
from reference import Reference, random_prompt
from tiny_model import make_tiny_model
from waiting import until

from diptych.engine import quality
from diptych.messages import Role
from diptych.model_folder import ModelFolder

MAX_TOKENS = 12
INT8 = {"weights": "int8"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that passes the gate."""
    base = tmp_path_factory.mktemp("model")
    return make_fitted_model(
        base / "tiny", quality._windows(ModelFolder(make_tiny_model(base / "plain"))), num_steps=30
    )


async def test_int8_workers_exchange_kv_among_themselves_only(model: Path, valkey_url: str, tmp_path: Path) -> None:
    reference = Reference(model, "int8")
    async with ProcessCluster(
        model, valkey_url, tmp_path, worker=INT8, router=INT8 | {"remote_prefill": "always"}
    ) as cluster:
        (even,) = cluster.of_role(Role.PREFILL)
        cluster.by_role[Role.PREFILL] = {"weights": "full"}
        odd = await cluster.start_worker(Role.PREFILL)

        async def refused() -> bool:
            return f"{odd.record.worker_id} is refused" in str(await cluster.health())

        await until(refused, "the router refuses the worker with full weights")
        canaries = (await cluster.stats(even)).transfers_total
        for length in (5, 33, 150):
            prompt = random_prompt(length, seed=length)
            body = {
                "model": "tiny",
                "prompt": prompt,
                "max_tokens": MAX_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            answer = await cluster.http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["token_ids"] == reference.tokens(prompt, MAX_TOKENS)
        assert (await cluster.stats(even)).transfers_total == canaries + 3
        assert (await cluster.stats(odd)).steps_total == 0
