"""The same plan through simulated engines in real processes and through the simulator's virtual time: what clients see
agrees. Both run the real scheduler, cache and placement, so what differs is what virtual time leaves out: HTTP, gRPC,
Redis, NIXL and Python. Times are long against those; on a busy machine they still add to the time to first token.

    pytest -m slow -s tests/e2e/test_sim_against_virtual_time.py       prints both
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from process_cluster import ProcessCluster
from tiny_model import make_tiny_model

from diptych.engine.limits import Limits
from diptych.engine.sim.timing_spec import parse_timing
from loadgen.arrivals import OpenLoop as Arrivals
from loadgen.arrivals import parse_rate
from loadgen.client.config import RunConfig
from loadgen.client.plan import Plan, make_plan
from loadgen.client.records import read_records
from loadgen.client.run import run_once
from loadgen.sim.cluster import simulate
from loadgen.sim.config import Fleet, SimConfig
from loadgen.sim.policies import min_ttft
from loadgen.sim.requests import SimRequest
from loadgen.sim.running import timing as measure
from loadgen.sim.workload import OpenLoop
from loadgen.traces.mooncake import TokenBlocks

TIMING = "fixed:prefill_ms=50,decode_ms=10"
MEASURED = "timing.json"
BLOCK_SIZE, BLOCK_BYTES, NUM_BLOCKS, BATCH, RUNNING = 16, 16 * 64, 1_024, 128, 16
SHARED = {"engine": "sim"}
WORKER = {
    **SHARED,
    "sim_timing": TIMING,
    "sim_kv_tokens": NUM_BLOCKS * BLOCK_SIZE,
    "max_batch_tokens": BATCH,
    "max_running": RUNNING,
}


@dataclass(frozen=True)
class Seen:
    """What clients saw, in ms; and the share of prompt tokens that some cache had."""

    ttft: Sequence[float]
    tpot: Sequence[float]
    reuse: float

    def __str__(self) -> str:
        ttft, tpot = np.array(self.ttft), np.array(self.tpot)
        return (
            f"TTFT mean {ttft.mean():.1f} p50 {np.median(ttft):.1f} p90 {np.percentile(ttft, 90):.1f} ms   "
            f"TPOT mean {tpot.mean():.2f} p90 {np.percentile(tpot, 90):.2f} ms   reuse {self.reuse:.1%}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["1P+1D", "2P+2D", "2"])
async def test_processes_and_virtual_time_agree(fleet: str, tmp_path: Path, valkey_url: str) -> None:
    config = RunConfig(
        base_url="http://unknown.yet",
        model="tiny",
        workload="shared-system:system=256,systems=3,user=40..200,output=16..32",
        arrivals=Arrivals(parse_rate("5", None)),
        num_requests=100,
        vocabulary_size=250,
        lag_limit_ms=60_000,
    )
    plan = make_plan(config)
    virtual = in_virtual_time(Fleet.parse(fleet), plan, config)
    real = await in_processes(Fleet.parse(fleet), config, tmp_path, valkey_url)
    print(f"\n{fleet:<6} virtual time  {virtual}\n{fleet:<6} processes     {real}")
    assert np.mean(real.tpot) == pytest.approx(np.mean(virtual.tpot), rel=0.15)
    assert np.mean(real.ttft) == pytest.approx(np.mean(virtual.ttft), rel=0.25)
    assert real.reuse == pytest.approx(virtual.reuse, abs=0.05)
    # What its workers reported of themselves, played again in virtual time, decodes as they did.
    again = in_virtual_time(Fleet.parse(fleet), plan, config, f"measured:{tmp_path / MEASURED}")
    print(f"{fleet:<6} as measured   {again}")
    if fleet != "2":  # where prompts are not in decode's steps
        assert np.mean(again.tpot) == pytest.approx(np.mean(real.tpot), rel=0.15)


def in_virtual_time(fleet: Fleet, plan: Plan, config: RunConfig, timing: str = TIMING) -> Seen:
    cluster = simulate(
        SimConfig(
            fleet,
            parse_timing(timing),
            min_ttft("always" if fleet.num_prefill else "auto"),
            Limits(BATCH, RUNNING, BLOCK_SIZE, 2_048),
            NUM_BLOCKS,
            BLOCK_BYTES,
            report_interval_ms=100.0,
        ),
        OpenLoop(requests_of(plan, config)),
    )
    assert all(each.finished for each in cluster.records)
    total = sum(each.request.input_length for each in cluster.records)
    reuse = sum(each.cached for each in cluster.records) / total
    return Seen([each.ttft_ms for each in cluster.records], [each.tpot_ms for each in cluster.records], reuse)


def requests_of(plan: Plan, config: RunConfig) -> list[SimRequest]:
    """With the very tokens that the generator sends."""
    blocks = TokenBlocks(config.vocabulary_size, (config.salt << 32) + config.seed)
    return [
        SimRequest(
            each.index,
            round(each.due_ms * 1e6),
            each.request.input_length,
            each.request.output_length,
            prompt=tuple(blocks.prompt(each.request, each.index)),
        )
        for each in plan.requests
    ]


async def in_processes(fleet: Fleet, config: RunConfig, folder: Path, redis_url: str) -> Seen:
    model, logs, path = make_tiny_model(folder / "tiny"), folder / "logs", folder / "records.jsonl"
    (model / "model.safetensors").unlink()
    logs.mkdir()
    async with ProcessCluster(
        model,
        redis_url,
        logs,
        prefill=fleet.num_prefill,
        decode=fleet.num_decode,
        worker=WORKER,
        router={**SHARED, "remote_prefill": "always" if fleet.num_prefill else "auto"},
    ) as cluster:
        result = await run_once(msgspec.structs.replace(config, base_url=cluster.base_url), records_path=path)
        assert await asyncio.to_thread(measure, cluster.base_url, out=folder / MEASURED, seconds=1.0) == 0
    assert result.simulated
    assert not result.summary.failures
    records = [each for each in read_records(path) if each.ttft_ms is not None and each.e2e_ms is not None]
    assert len(records) == config.num_requests
    assert all(record.output_tokens == record.planned_output for record in records)
    tpot = [(record.e2e_ms - record.ttft_ms) / (record.output_tokens - 1) for record in records]
    cached = sum(record.cached_tokens or 0 for record in records)
    return Seen([each.ttft_ms for each in records], tpot, cached / sum(each.planned_input for each in records))
