"""What a worker's device means for its transfers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import make_tiny_model

from diptych.config import WorkerConfig
from diptych.messages import Role
from diptych.model_folder import ModelFolder
from diptych.worker.loading import load
from diptych.worker.process import transports_of
from kv_transfer.identity import identity_of
from kv_transfer.nixl_agent import ucx_environment


def config(device: str, *transports: str, **fields: str) -> WorkerConfig:
    given = {"transports": transports} if transports else {}
    return WorkerConfig(role=Role.DECODE, model="unused", device=device, **given, **fields)  # type: ignore[arg-type]


def test_host_memory_needs_no_more_than_configured() -> None:
    assert transports_of(config("cpu")) == ("tcp", "sm", "self")
    assert transports_of(config("cpu", "tcp")) == ("tcp",)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpus_memory_brings_the_transports_that_reach_it(device: str) -> None:
    assert transports_of(config(device)) == ("tcp", "sm", "self", "cuda_copy", "cuda_ipc")
    assert transports_of(config(device, "tcp", "rc")) == ("tcp", "rc", "cuda_copy", "cuda_ipc")
    assert ucx_environment(transports_of(config(device)))["UCX_TLS"] == "tcp,sm,self,cuda_copy,cuda_ipc"


@pytest.mark.parametrize("chosen", [("all",), ("tcp", "cuda"), ("tcp", "cuda_copy"), ("^cuda_ipc", "tcp")])
def test_a_choice_of_the_operators_stands(chosen: tuple[str, ...]) -> None:
    assert transports_of(config("cuda", *chosen)) == chosen


def test_the_engine_computes_in_the_configured_dtype(tmp_path: Path) -> None:
    folder = ModelFolder(make_tiny_model(tmp_path / "tiny"))
    for dtype in ("float32", "bfloat16"):
        given = config("cpu", dtype=dtype, kv_cache_bytes=1 << 20)  # type: ignore[arg-type]
        runner = load(folder, given, identity_of(folder, given)).runner
        assert runner.dtype == dtype  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="dtype is 'float8'"):
        identity_of(folder, config("cpu", dtype="float8"))
