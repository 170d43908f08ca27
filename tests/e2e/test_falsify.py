"""`loadgen falsify` on clusters that it starts itself, through Ray, with an answer that is known beforehand.

With simulated engines in real worker processes the times of steps are given, so it is arithmetic who has to win: a
miss costs 467 ms of prefill where the limit is 300, or a prompt stalls running answers by 330 ms where 38 ms a token
are allowed. All that lies between (router, placement, index, transfers, load generator, verdict) is what a user runs.
Limits are wide against what a busy machine adds, and so is what is held to be a late generator.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_model import make_tiny_model
from up_process import ROOT

from loadgen.falsify.design import Design
from loadgen.report.result import RunResult, read_result

SHARED = "shared-system:system=608,systems=6,popularity=0,user=16,output=2"
UNSHARED = "independent:input=624,output=2"
TOO_FEW_FOR_ALL = 2_600  # tokens in a worker's cache: four of the six prompts
CACHE_AWARE = ("--question", "cache-aware", "--prefill", "0", "--decode", "2")
MET_FIRST = ("--warmup", "0.4")  # share of a block in which prompts are met for the first time
LOAD = ("--requests", "32", "--rate", "4", *MET_FIRST)
QUICK_LOAD = ("--requests", "32", "--rate", "8", *MET_FIRST)
REAL_WORKER = {"kv_cache_bytes": TOO_FEW_FOR_ALL * 512}  # bytes of a tiny model's token
SIMULATED = 'engine = "sim"'
VERDICTS = {0: "pays", 10: "does not pay", 11: "cannot tell"}


@dataclass(frozen=True)
class Outcome:
    status: int
    said: str
    verdict: dict[str, Any]
    runs: dict[str, list[RunResult]]  # by arm

    def hits(self, arm: str, kind: str) -> float:
        found = [getattr(run.summary.cache, kind) for run in self.runs[arm]]
        return float(sum(found) / len(found))


class Trials:
    """Trials of one test, each with a home of its own, so that none finds another's cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = make_tiny_model(folder / "tiny")

    async def run(self, name: str, workload: str, *words: str, options: str = "", **worker: object) -> Outcome:
        home = self._folder / name
        home.mkdir()
        of_workers = ", ".join(f"{key} = {json.dumps(value)}" for key, value in worker.items())
        (home / "cluster.toml").write_text(
            f'[cluster]\nmodel = "{self._model}"\noptions = {{{options}}}\nworker_options = {{{of_workers}}}\n'
        )
        cluster = ("--cluster", str(home / "cluster.toml"), "--vocabulary-size", "250", "--lag-limit-ms", "2000")
        out, said = home / "out", home / "said"
        with said.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadgen", "falsify", workload, "--blocks", "4", "--out", str(out)),
                *(*cluster, *words),
                cwd=ROOT,
                env=os.environ | {"HOME": str(home), "XDG_STATE_HOME": "", "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
            )
            try:
                status = await process.wait()
            except BaseException:
                process.terminate()
                await process.wait()
                raise
        assert status in VERDICTS, said.read_text()
        return Outcome(status, said.read_text(), complete_verdict(out, status), runs_of(out))


def complete_verdict(out: Path, status: int) -> dict[str, Any]:
    """Of a trial that is over, of the very design that was registered."""
    registered = json.loads((out / "design.json").read_text())
    verdict: dict[str, Any] = json.loads((out / "verdict.json").read_text())
    design = msgspec.convert(registered["design"], Design)
    content = hashlib.sha256(msgspec.json.encode(design, order="deterministic")).hexdigest()
    assert content == registered["sha256"] == verdict["sha256"] == design.digest
    assert verdict["design"] == registered["design"]
    assert (verdict["verdict"], verdict["exit_status"]) == (VERDICTS[status], status)
    assert [block["attempts"] for block in verdict["blocks"]] == [1] * 4
    assert (verdict["blocks_used"], verdict["blocks_left_out"]) == (4, 0)
    assert verdict["sha256"] in (out / "verdict.html").read_text()
    return verdict


def runs_of(out: Path) -> dict[str, list[RunResult]]:
    found: dict[str, list[RunResult]] = {}
    for file in sorted(out.glob("block-*.run.json")):
        found.setdefault(file.name.removesuffix(".run.json").split("-", 2)[2], []).append(read_result(file))
    assert {len(runs) for runs in found.values()} == {4}
    return found


@pytest.mark.slow
async def test_cache_aware_placement_pays_where_prompts_are_shared_and_not_where_nothing_is(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    timing = {"sim_timing": "fixed:prefill_ms=30,decode_ms=20,prefill_us_per_token=700"}
    played = {**timing, "sim_kv_tokens": TOO_FEW_FOR_ALL}
    same = (*CACHE_AWARE, *LOAD, "--minimal-effect", "0.02")
    shared, unshared = await asyncio.gather(
        trials.run("shared", SHARED, *same, "--slo", "ttft_ms=300,tpot_ms=5000", options=SIMULATED, **played),
        trials.run("unshared", UNSHARED, *same, "--slo", "ttft_ms=1000,tpot_ms=5000", options=SIMULATED, **played),
    )
    assert shared.status == 0, shared.said
    assert shared.hits("min-ttft", "hit_rate") > shared.hits("least-load", "hit_rate") + 0.1
    assert unshared.status in (10, 11), unshared.said
    assert unshared.hits("min-ttft", "hit_rate") == unshared.hits("least-load", "hit_rate") == 0
    for outcome in (shared, unshared):
        assert outcome.verdict["simulated"] is True
        assert "SIMULATED, not measured" in outcome.said
        assert all(not run.summary.failures for runs in outcome.runs.values() for run in runs)


@pytest.mark.slow
async def test_disaggregation_pays_where_prompts_stall_answers_and_a_real_model_runs_under_both_policies(
    tmp_path: Path,
) -> None:
    trials = Trials(tmp_path)
    stalled, real = await asyncio.gather(
        trials.run(
            "stalled",
            "independent:input=400,output=64",
            *("--requests", "16", "--rate", "2.4", "--warmup", "0.3", "--slo", "ttft_ms=6000,tpot_ms=38"),
            options=SIMULATED,
            sim_timing="fixed:prefill_ms=30,decode_ms=30,prefill_us_per_token=750",
            sim_kv_tokens=30_000,
        ),
        trials.run("real", SHARED, *CACHE_AWARE, *QUICK_LOAD, "--slo", "ttft_ms=300,tpot_ms=5000", **REAL_WORKER),
    )
    assert stalled.status == 0, stalled.said
    remote = {arm: {run.summary.phases.remote_share for run in runs} for arm, runs in stalled.runs.items()}
    assert min(remote["disaggregated"]) > 0
    assert remote["colocated"] == {0}
    assert real.verdict["simulated"] is False
    assert "SIMULATED" not in real.said
    for kind in ("hit_rate", "predicted_hit_rate"):
        assert real.hits("min-ttft", kind) > real.hits("least-load", kind)
