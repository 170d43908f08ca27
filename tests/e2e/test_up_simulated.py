"""`diptych up --engine sim` as a user runs it: eight workers without a model's weights, and nobody is left in doubt."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tiny_model import make_tiny_model
from up_process import UpProcess, free_port


@pytest.mark.slow
async def test_eight_simulated_workers(tmp_path: Path) -> None:
    model, port = make_tiny_model(tmp_path / "tiny"), free_port()
    (model / "model.safetensors").unlink()
    timing = "fit:Meta-Llama-3.1-8B/h100"
    words = ["--engine", "sim", "--timing", timing, "--speedup", "2", "--prefill", "4", "--decode", "4"]
    up = UpProcess(tmp_path, "--model", str(model), "--http-port", str(port), "--max-tokens", "8", *words)
    async with up:
        await up.wait_ready()
        assert f"SIMULATED, no model computes; steps take {timing}, 2 times as fast" in up.output.read_text()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            (entry,) = (await client.get("/v1/models")).json()["data"]
            details = (await client.get("/health")).json()["details"]
        assert (entry["id"], entry["simulated"]) == ("tiny-simulated", True)
        assert (details["prefill_workers"], details["decode_workers"], details["simulated"]) == (4, 4, True)
        with up.admin() as admin:
            assert admin.status().model == "tiny-simulated"
            admin.down()


def test_a_timing_model_that_there_is_not_is_refused_before_anything_starts(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    up = UpProcess(tmp_path, "--model", str(model), "--http-port", str(free_port()), "--engine", "sim", "--timing", "9")
    assert up.end() == 1
    assert "it begins with fixed:" in up.output.read_text()
