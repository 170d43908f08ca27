"""`diptych plan --backtest` against a cluster that was really measured, over HTTP, by the commands that users type.

The workers are simulated engines whose step times are known, so what a prediction is off by is what the simulator does
not know: HTTP, gRPC, Redis, transfers, Python. For the commands the run is passed off as one of a real model, which a
back-test insists on.

    pytest -m slow -s tests/e2e/test_plan_backtest.py       prints what was predicted and what was measured
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from process_cluster import ProcessCluster
from tiny_model import make_tiny_model

from diptych.engine.sim.timing import StepShape
from diptych.engine.sim.timing_spec import parse_timing
from loadgen.report.result import RunResult

ROOT = Path(__file__).resolve().parents[2]
TIMING = "fitted:prefill_c0_ms=20,prefill_c1_ms_per_token=0.3,decode_c0_ms=20,decode_c1_ms_per_row=2"
HALF = "fitted:prefill_c0_ms=10,prefill_c1_ms_per_token=0.15,decode_c0_ms=10,decode_c1_ms_per_row=1"
BATCH, RUNNING, KV_TOKENS = 128, 16, 16_384
WORKER = {
    "engine": "sim",
    "sim_timing": TIMING,
    "sim_kv_tokens": KV_TOKENS,
    "max_batch_tokens": BATCH,
    "max_running": RUNNING,
}
WORKLOAD = "independent:input=40..400,output=10..40"
POLICIES = {"1P+1D": "min_ttft_remote", "2": "min_ttft"}
KV = f"--kv-tokens {KV_TOKENS} --kv-bytes-per-token 64 --block-size 16"
ENGINE = f"{KV} --max-batch-tokens {BATCH} --max-running {RUNNING}"


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["1P+1D", "2"])
async def test_what_a_plan_predicts_is_what_a_cluster_does(fleet: str, tmp_path: Path, valkey_url: str) -> None:
    model, logs = make_tiny_model(tmp_path / "tiny"), tmp_path / "logs"
    logs.mkdir()
    remote = "always" if "P" in fleet else "auto"
    async with ProcessCluster(
        model,
        valkey_url,
        logs,
        prefill=int("P" in fleet),
        decode=1 if "P" in fleet else 2,
        worker=WORKER,
        router={"engine": "sim", "remote_prefill": remote},
    ) as cluster:
        calibration = await run(cluster.base_url, tmp_path / "calibration", seed=1, rate=2, num_requests=70)
        measured = await run(cluster.base_url, tmp_path / "measured", seed=2, rate=4, num_requests=100)
    timing = tmp_path / "timing.json"
    print("\n" + await loadgen(f"timing {calibration} --out {timing} --max-batch-tokens {BATCH}"))

    played, found = parse_timing(TIMING), parse_timing(f"measured:{timing}")
    for shape in (StepShape(((0, BATCH),), 0, 0), StepShape((), 1, 200), StepShape((), 4, 800)):
        assert found.step_ms(shape) == pytest.approx(played.step_ms(shape), rel=0.25), shape

    for given in (TIMING, f"measured:{timing}"):
        test = await backtest(measured, fleet, given)
        print(f"{fleet:<6} {given[:8]} {figures(test)}")
        assert not test["timing_from_it"]
        assert abs(error(test, "ttft_mean_ms")) < 0.25
        assert abs(error(test, "tpot_mean_ms")) < 0.15
    too_fast = await backtest(measured, fleet, HALF)
    print(f"{fleet:<6} half     {figures(too_fast)}")
    assert error(too_fast, "ttft_mean_ms") < -0.4
    assert error(too_fast, "tpot_mean_ms") < -0.4
    assert (await backtest(calibration, fleet, f"measured:{timing}"))["timing_from_it"]


async def run(url: str, out: Path, *, seed: int, rate: float, num_requests: int) -> Path:
    """Returns the run's file."""
    said = f"--workload {WORKLOAD} --rate {rate} --requests {num_requests} --seed {seed} --vocabulary-size 250"
    report = ["--extra-body", '{"return_report": true}']
    await loadgen(f"run {url} --model tiny {said} --lag-limit-ms 60000 --name run --out {out}", *report)
    path = out / f"run-{seed}.run.json"
    result = msgspec.json.decode(path.read_bytes(), type=RunResult)
    assert result.simulated
    assert not result.summary.failures
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(result, simulated=False)))
    return path


async def backtest(run: Path, fleet: str, timing: str) -> dict[str, Any]:
    words = (
        f"plan {WORKLOAD} --requests 40 --rate 4 --slo ttft_ms=1000,tpot_ms=50 --workers 2 --seeds 1 --json {ENGINE}"
    )
    told = f"--policy {POLICIES[fleet]} --timing {timing} --backtest {run} --backtest-fleet {fleet}"
    (test,) = json.loads(await loadgen(f"{words} {told}", ok=(0, 4)))["backtests"]
    return dict(test)


async def loadgen(words: str, *more: str, ok: tuple[int, ...] = (0,)) -> str:
    command = (sys.executable, "-m", "loadgen", *words.split(), *more)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    assert process.returncode in ok, f"{process.returncode}: {err.decode()}"
    return out.decode()


def error(test: dict[str, Any], name: str) -> float:
    (each,) = [each for each in test["compared"] if each["name"] == name]
    return float(each["predicted"] / each["measured"] - 1)


def figures(test: dict[str, Any]) -> str:
    names = ("ttft_mean_ms", "ttft_p90_ms", "tpot_mean_ms", "tpot_p90_ms")
    known = {each["name"]: each for each in test["compared"]}
    return "  ".join(
        f"{name} {known[name]['predicted']:.1f} for {known[name]['measured']:.1f} ({error(test, name):+.0%})"
        for name in names
    )
