"""What of a model folder and a configuration becomes of a simulated engine: room, memory, vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_model import make_tiny_model

from diptych.config import RouterConfig, WorkerConfig
from diptych.engine.sim.fits import deployment
from diptych.engine.sim.loading import load_sim_runner, vocabulary_of
from diptych.engine.sim.runner import SimRunner
from diptych.errors import Incompatible
from diptych.messages import PeerHello, Role
from diptych.model_folder import ModelFolder
from diptych.worker.loading import load
from kv_transfer.identity import identity_of
from kv_transfer.layout import check_compatible

FIT = "fit:Meta-Llama-3.1-8B/h100"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    (path / "model.safetensors").unlink()
    return ModelFolder(path)


def worker(folder: ModelFolder, **fields: Any) -> WorkerConfig:
    return WorkerConfig(**{"role": Role.DECODE, "model": str(folder.path), "engine": "sim", **fields})


def make(folder: ModelFolder, **changes: Any) -> SimRunner:
    options: dict[str, Any] = {
        "identity": "x",
        "timing": "fixed:prefill_ms=1,decode_ms=1",
        "speedup": 1.0,
        "block_size": 16,
        "cell_bytes": 64,
        "model_bytes_per_token": 1024,
        "kv_cache_bytes": 1 << 20,
    }
    return load_sim_runner(folder.spec, **options | changes)


def test_the_cache_holds_what_the_played_one_would(folder: ModelFolder) -> None:
    runner = make(folder)
    assert runner.num_blocks * 16 == (1 << 20) // 1024
    assert runner.pool.nbytes == (runner.num_blocks + runner.num_scratch_blocks) * 16 * 64
    assert make(folder, kv_tokens=500).num_blocks == 500 // 16


def test_a_gpus_cache_is_played_in_little_memory(folder: ModelFolder) -> None:
    tokens = deployment("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 1).kv_tokens
    assert make(folder, timing=FIT, kv_cache_bytes=512 << 20).num_blocks == tokens // 16
    # Never more than it was given, however large the GPU.
    small = make(folder, timing=FIT)
    assert small.pool.nbytes <= (1 << 20) + small.block_bytes


def test_it_draws_no_special_token(folder: ModelFolder) -> None:
    ids = vocabulary_of(folder.spec)
    assert min(ids) == 3
    assert max(ids) < folder.spec.vocab_size
    assert not set(ids) & set(folder.spec.eos_token_ids)


def test_router_and_worker_come_to_the_same(folder: ModelFolder) -> None:
    fields = {"engine": "sim", "sim_cell_bytes": 48, "block_size": 32}
    worker_identity = identity_of(folder, worker(folder, **fields))
    assert worker_identity == identity_of(folder, RouterConfig(model=str(folder.path), **fields))  # type: ignore[arg-type]
    assert worker_identity.block_bytes == 48 * 32
    assert worker_identity.name == "tiny-simulated"
    own = identity_of(folder, worker(folder, sim_cell_bytes=0, served_model="mine"))
    assert own.block_bytes == folder.spec.block_bytes(16, 4)
    assert own.name == "mine"
    runner = load(folder, worker(folder, **fields), worker_identity).runner
    assert runner.block_bytes == worker_identity.block_bytes


def test_a_simulated_engine_and_a_real_one_never_exchange_kv(real: ModelFolder, folder: ModelFolder) -> None:
    """Even where names, shapes and sizes of blocks are the same."""
    fields = {"served_model": "same", "sim_cell_bytes": 0}
    simulated, computed = (
        identity_of(real, worker(real, engine=engine, **fields))  # type: ignore[arg-type]
        for engine in ("sim", "torch")
    )
    assert simulated.block_bytes == computed.block_bytes
    assert simulated.fingerprint == identity_of(folder, worker(folder, **fields)).fingerprint  # weights or not
    with pytest.raises(Incompatible, match="layout is"):
        check_compatible(*(hello(each.fingerprint, each.block_bytes) for each in (simulated, computed)))


def hello(fingerprint: str, block_bytes: int) -> PeerHello:
    return PeerHello(
        worker_id="w",
        fingerprint=fingerprint,
        agent_metadata=b"",
        pool_address=1,
        block_bytes=block_bytes,
        num_blocks=1,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "other"},
        {"sim_cell_bytes": 8},
        {"sim_speedup": 0.0},
        {"sim_kv_tokens": -1},
        {"device": "cuda"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(folder: ModelFolder, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).removeprefix("sim_")):
        worker(folder, **wrong)
