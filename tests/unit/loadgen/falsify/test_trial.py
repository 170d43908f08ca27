"""Runs in the order that was fixed, on the same requests, and the command from trace to exit status."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest
from falsify_cases import ScriptedBackend, a_design

from loadgen.client.plan import make_plan
from loadgen.experiment.shape import Shape
from loadgen.falsify.cli import falsify
from loadgen.falsify.trial import Client, Trial, digest_of
from loadgen.falsify.verdict import Answer, judge
from loadgen.planner.options import EngineOptions
from loadgen.traces.mooncake import TraceRequest
from loadgen.workloads.workload import Workload

FITTED = "fitted:prefill_c0_ms=10,prefill_c1_ms_per_token=0.1,decode_c0_ms=10,decode_c1_ms_per_row=0.2"
ENGINE = EngineOptions(timing=FITTED, kv_tokens=40_000, kv_bytes_per_token=1_000, hop_ms=0.0)


def workload(num_requests: int = 400) -> Workload:
    requests = [TraceRequest(100.0 * i, 40 + i % 9, 3, (0, i, 500 + i), 16) for i in range(num_requests)]
    return Workload(requests, [f"class {i % 2}" for i in range(num_requests)], timed=True)


def run(backend: ScriptedBackend, folder: Path, **of_design: object) -> Trial:
    design = a_design(**of_design)  # type: ignore[arg-type]
    trial = Trial(design, workload(), backend, Client(), folder, lambda text: None)
    asyncio.run(trial.run())
    return trial


def test_both_arms_get_the_same_requests_in_the_order_that_was_drawn(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda shape, number: bool(shape.prefill) or number % 2 == 0)
    trial = run(backend, tmp_path, jitter_ms=30.0)
    measured = [call[1:] for call in backend.calls if call[0] == "measure"]
    design = a_design(jitter_ms=30.0)
    letters = "".join("A" if shape.prefill else "B" for shape, _ in measured)
    assert letters == "".join(design.orders)
    for number in range(8):
        (_, first), (_, second) = measured[2 * number : 2 * number + 2]
        plans = [[(each.due_ms, each.request) for each in make_plan(config).requests] for config in (first, second)]
        assert plans[0] == plans[1]
        assert first.salt != second.salt  # nothing of one run is in the other's cache
        start = design.stretches[number].first
        lengths = {each.request.input_length for each in make_plan(first).requests}
        assert lengths == {each.input_length for each in workload().requests[start : start + 20]}
    assert len({config.salt for _, config in measured}) == 16
    assert {block.difference for block in trial.blocks} == {0.5}
    assert judge(design, trial.blocks).answer is Answer.PAYS


def test_a_cluster_is_shaped_and_settled_only_where_the_arm_changes(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda shape, number: True)
    trial = run(backend, tmp_path)
    letters = "".join(block.order for block in trial.blocks)
    changes = 1 + sum(one != other for one, other in pairwise(letters))
    assert [call[0] for call in backend.calls].count("shape") == changes < 16
    assert [call[0] for call in backend.calls].count("settle") == changes


def test_a_block_in_which_the_generator_fell_behind_is_run_once_more_and_then_left_out(tmp_path: Path) -> None:
    late = {1, 5, 7}  # the first run; and one of the third block in both attempts
    backend = ScriptedBackend(lambda shape, number: True, lambda call: 500.0 if call in late else 0.0)
    trial = run(backend, tmp_path)
    assert [block.attempts for block in trial.blocks[:3]] == [2, 2, 1] or [
        block.attempts for block in trial.blocks[:2]
    ] == [2, 2]
    assert len(trial.blocks) == 8
    again = list(tmp_path.glob("*-again.run.json"))
    assert len(again) == 2 * sum(block.attempts == 2 for block in trial.blocks)


def test_what_the_digest_is_over() -> None:
    assert digest_of(workload()) == digest_of(workload())
    assert digest_of(workload()) != digest_of(workload(399))


def write_log(path: Path, num_requests: int = 160) -> Path:
    lines = [
        {"arrival_ms": 50.0 * i, "input_tokens": 400 + 37 * (i % 5), "output_tokens": 20 + i % 7}
        for i in range(num_requests)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("slo", "status", "word"),
    [("ttft_ms=2000,tpot_ms=14", 0, "PAYS"), ("ttft_ms=90,tpot_ms=1000", 10, "DOES NOT PAY")],
)
def test_the_command_in_virtual_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slo: str, status: int, word: str
) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    out = tmp_path / "out"
    options = {"slo": slo, "prefill": 2, "decode": 1, "blocks": 4, "max_batch_tokens": 256, "out": out}
    assert falsify(str(trace), **options, simulate=True, engine=ENGINE) == status  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert word in said
    assert "SIMULATED" in said
    design, verdict = (json.loads((out / name).read_text()) for name in ("design.json", "verdict.json"))
    assert design["sha256"] == verdict["sha256"]
    assert said.count(design["sha256"]) == 2  # before the first request, and with the verdict
    assert verdict["exit_status"] == status
    assert verdict["simulated"]
    assert "<script" not in (out / "verdict.html").read_text()
    assert falsify(str(trace), **options, simulate=True, engine=ENGINE) == 1  # type: ignore[arg-type]
    assert "verdict" in capsys.readouterr().err
    assert falsify(str(trace), **{**options, "minimal_effect": 0.2}, simulate=True, engine=ENGINE) == 1  # type: ignore[arg-type]
    assert "another design" in capsys.readouterr().err


def test_the_plan_is_written_before_anything_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    options = {"slo": "ttft_ms=1,tpot_ms=1", "blocks": 4, "out": tmp_path / "out"}
    assert falsify(str(trace), **options, register_only=True) == 0  # type: ignore[arg-type]
    assert "Pre-registered" in capsys.readouterr().out
    assert (tmp_path / "out" / "design.json").exists()
    for wrong in ({"blocks": 3}, {"minimal_effect": 1.0}, {"warmup": 1.0}, {"prefill": 0}, {"requests": 50}):
        assert falsify(str(trace), **{**options, **wrong}, register_only=True) == 1  # type: ignore[arg-type]
    assert falsify(str(trace), **options, question="cache-aware", running=True) == 1  # type: ignore[arg-type]
    assert "policy" in capsys.readouterr().err


def test_stopped_in_a_run_there_is_no_verdict(tmp_path: Path) -> None:
    class Interrupting(ScriptedBackend):
        async def measure(self, config, shape: Shape, records_path: Path):  # type: ignore[no-untyped-def]
            result, use = await super().measure(config, shape, records_path)
            if len(self.calls) > 6:
                result.invalid_because.append("the run was stopped before its end")
            return result, use

    from loadgen.falsify.cli import _run

    backend = Interrupting(lambda shape, number: bool(shape.prefill))
    trial = Trial(a_design(), workload(), backend, Client(), tmp_path, lambda text: None)
    assert asyncio.run(_run(trial, backend)) is True
    assert backend.closed
    assert len(trial.blocks) < 8
    assert judge(a_design(), trial.blocks, stopped=True).answer is Answer.CANNOT_TELL
