"""Runs in the order that was fixed, on the same requests, and the command from trace to exit status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from falsify_cases import ScriptedBackend, a_design

from loadgen.client.plan import make_plan
from loadgen.client.run import ShardFailed
from loadgen.experiment.admin import Status
from loadgen.experiment.placement import Placement
from loadgen.experiment.shape import Shape, SystemUnavailable
from loadgen.falsify import assemble
from loadgen.falsify.attended import Attended
from loadgen.falsify.cli import REGISTERED, _run, falsify
from loadgen.falsify.program import program
from loadgen.falsify.report import as_data, page, verdict_text
from loadgen.falsify.trial import Trial
from loadgen.falsify.verdict import EXIT_STATUS, Answer, judge
from loadgen.planner.options import EngineOptions
from loadgen.planner.traffic import digest_of
from loadgen.planner.usage import WRONG_USAGE
from loadgen.traces.mooncake import TraceRequest
from loadgen.workloads.workload import Workload

FITTED = "fitted:prefill_c0_ms=10,prefill_c1_ms_per_token=0.1,decode_c0_ms=10,decode_c1_ms_per_row=0.2"
ENGINE = EngineOptions(timing=FITTED, kv_tokens=40_000, kv_bytes_per_token=1_000, hop_ms=0.0)


def workload(num_requests: int = 400) -> Workload:
    requests = [TraceRequest(100.0 * i, 40 + i % 9, 3, (0, i, 500 + i), 16) for i in range(num_requests)]
    return Workload(requests, [f"class {i % 2}" for i in range(num_requests)], timed=True)


def run(backend: ScriptedBackend, folder: Path, **of_design: object) -> Trial:
    design = a_design(**of_design)  # type: ignore[arg-type]
    trial = Trial(design, workload(), backend, folder, lambda text: None)
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
    whole, same, shorter = (digest_of(of.requests, of.labels) for of in (workload(), workload(), workload(399)))
    assert whole == same != shorter


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
    assert falsify(str(trace), **options, register_only=True) == REGISTERED  # type: ignore[arg-type]
    assert {REGISTERED}.isdisjoint(EXIT_STATUS.values())
    assert "Pre-registered" in capsys.readouterr().out
    assert (tmp_path / "out" / "design.json").exists()
    assert falsify(str(trace), **options, requests=50) == 1  # type: ignore[arg-type]  # more than the trace has
    assert falsify(str(trace), **options, seed=5) == 1  # type: ignore[arg-type]
    assert "it differs in seed)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"slo": "ttft_ms=1"},
        {"slo": "ttft_ms=1,tpot_ms=much"},
        {"blocks": 3},
        {"minimal_effect": 1.0},
        {"warmup": 1.0},
        {"prefill": 0},
        {"rate": 3.0, "speedup": 2.0},
        {"simulate": True, "engine": EngineOptions(timing="quick")},
        {"question": "cache-aware", "running": True},
    ],
)
def test_wrong_usage_has_a_status_of_its_own(tmp_path: Path, wrong: dict[str, object]) -> None:
    trace, out = write_log(tmp_path / "mine.jsonl"), tmp_path / "out"
    options: dict[str, object] = {"slo": "ttft_ms=1,tpot_ms=1", "blocks": 4, "out": out, **wrong}
    assert falsify(str(trace), **options) == WRONG_USAGE == 2  # type: ignore[arg-type]
    assert not out.exists()


def test_stopped_in_a_run_there_is_no_verdict(tmp_path: Path) -> None:
    class Interrupting(ScriptedBackend):
        async def measure(self, config, shape: Shape, records_path: Path):  # type: ignore[no-untyped-def]
            result, use = await super().measure(config, shape, records_path)
            if len(self.calls) > 6:
                result.invalid_because.append("the run was stopped before its end")
            return result, use

    backend = Interrupting(lambda shape, number: bool(shape.prefill))
    trial = Trial(a_design(), workload(), backend, tmp_path, lambda text: None)
    assert asyncio.run(_run(trial, backend)) is True
    assert backend.closed
    assert len(trial.blocks) < 8
    verdict = judge(a_design(), trial.blocks, stopped=True)
    assert verdict.answer is Answer.CANNOT_TELL
    assert "whether a model computed" not in verdict_text(a_design(), [], verdict)  # nothing did


def test_a_signal_to_the_whole_group_that_ends_a_shard_first_is_a_stop_too(tmp_path: Path) -> None:
    class Group(ScriptedBackend):
        async def measure(self, config, shape: Shape, records_path: Path):  # type: ignore[no-untyped-def]
            task = asyncio.current_task()
            assert task is not None
            if told == "first":
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):  # as `run_once` does, to read what there is
                    await asyncio.sleep(60)
            if told == "last":
                asyncio.get_running_loop().call_soon(task.cancel)
            raise ShardFailed("a process of the load generator ended with status -15")

    for told in ("first", "last", ""):
        backend = Group(lambda shape, number: True)
        trial = Trial(a_design(), workload(), backend, tmp_path, lambda text: None)
        if told:
            assert asyncio.run(_run(trial, backend)) is True
        else:
            with pytest.raises(ShardFailed):
                asyncio.run(_run(trial, backend))
        assert backend.closed


def test_sigterm_ends_a_trial_as_ctrl_c_does(tmp_path: Path) -> None:
    class Told(ScriptedBackend):
        async def shape(self, shape: Shape) -> tuple[str, str]:
            if len(self.calls) > 6:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()
            return await super().shape(shape)

    backend = Told(lambda shape, number: True)
    before = signal.signal(signal.SIGTERM, lambda *of: pytest.fail("nobody handles SIGTERM"))
    try:
        trial = Trial(a_design(), workload(), backend, tmp_path, lambda text: None)
        assert asyncio.run(_run(trial, backend)) is True
    finally:
        signal.signal(signal.SIGTERM, before)
    assert backend.closed


def test_no_two_trials_of_a_design_have_a_prompt_in_common(tmp_path: Path) -> None:
    salts, trials = [], []
    for number in range(2):
        backend = ScriptedBackend(lambda shape, number: True)
        trials.append(run(backend, tmp_path / str(number)))
        salts.append({call[2].salt for call in backend.calls if call[0] == "measure"})
    assert salts[0].isdisjoint(salts[1])
    verdict = judge(a_design(), trials[0].blocks)
    data = [as_data(a_design(), trial.blocks, verdict, trial.salt) for trial in trials]
    assert data[0]["salt"] != data[1]["salt"]
    assert data[0]["sha256"] == data[1]["sha256"]


def test_a_folder_with_runs_takes_no_second_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped before its verdict, a trial has shown figures all the same."""
    trace, out = write_log(tmp_path / "mine.jsonl"), tmp_path / "out"
    options = {"slo": "ttft_ms=90,tpot_ms=1000", "blocks": 4, "out": out, "simulate": True, "engine": ENGINE}
    assert falsify(str(trace), **options, register_only=True) == REGISTERED  # type: ignore[arg-type]
    (out / "block-01-colocated.run.json").write_text("{}")
    assert falsify(str(trace), **options) == 1  # type: ignore[arg-type]
    assert "runs of this design" in capsys.readouterr().err


def test_an_arm_without_prefill_workers_that_used_one_makes_a_trial_void(tmp_path: Path) -> None:
    with pytest.raises(SystemUnavailable, match=r"the trial is void: .*not what this run was to measure"):
        run(ScriptedBackend(lambda shape, number: True, remote=lambda shape: True), tmp_path)


def test_a_router_that_never_finds_a_prefill_worker_worth_while_is_an_answer(tmp_path: Path) -> None:
    """Short prompts: decode workers compute them sooner themselves, and half of the workers stand idle."""
    slower = ScriptedBackend(lambda shape, number: not shape.prefill or number % 2 == 0, remote=lambda shape: False)
    trial = run(slower, tmp_path)
    verdict = judge(a_design(), trial.blocks)
    assert verdict.answer is Answer.DOES_NOT_PAY
    (used,) = as_data(a_design(), trial.blocks, verdict, 0)["remote_prefill"]
    assert used == {"arm": "disaggregated", "requests": 160, "used": 0}
    for said in (verdict_text(a_design(), trial.blocks, verdict), page(a_design(), trial.blocks, verdict)):
        assert "the router used a prefill worker for none of 160 requests" in said
        assert "differs from colocated only by prefill workers (1) that stood idle" in said


def test_how_often_a_prefill_worker_was_used_is_told_with_the_verdict(tmp_path: Path) -> None:
    numbers = iter(range(1_000))
    sometimes = ScriptedBackend(
        lambda shape, number: True, remote=lambda shape: bool(shape.prefill) and next(numbers) % 4 == 0
    )
    trial = run(sometimes, tmp_path)
    text = verdict_text(a_design(), trial.blocks, judge(a_design(), trial.blocks))
    assert "disaggregated: the router used a prefill worker for 40 of 160 requests" in text
    assert "stood idle" not in text


@pytest.mark.parametrize("there", [1, 0])
def test_prefill_workers_that_were_not_used_are_looked_for(tmp_path: Path, there: int) -> None:
    class Door:
        async def status(self) -> Status:
            return Status(
                model="model", wanted={}, processes=[], complete=True, placeable={"prefill": there, "decode": 2}
            )

    never = ScriptedBackend(lambda shape, number: True, remote=lambda shape: False)
    attended = Attended(never, lambda: Door())  # type: ignore[arg-type, return-value]
    if there:
        assert len(run(attended, tmp_path).blocks) == 8  # type: ignore[arg-type]
    else:
        with pytest.raises(SystemUnavailable, match=r"the trial is void: .*: 0 of its prefill workers are there"):
            run(attended, tmp_path)  # type: ignore[arg-type]
    used = ScriptedBackend(lambda shape, number: True, remote=lambda shape: bool(shape.prefill))
    attended = Attended(used, lambda: Door())  # type: ignore[arg-type, return-value]
    assert len(run(attended, tmp_path / "used").blocks) == 8  # type: ignore[arg-type]


def test_what_a_running_cluster_serves_is_asked_at_its_admin_door(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cluster:
        closed = False

        @property
        def door(self) -> Cluster:
            return self

        async def status(self) -> Status:
            return Status(model="model-1", wanted={}, processes=[], complete=True)

        async def close(self) -> None:
            self.closed = True

    cluster, asked = Cluster(), []
    monkeypatch.setattr(assemble, "running_cluster", lambda *of: asked.append(of[:3]) or cluster)
    assert assemble.served_model(assemble.Running("http://door", "key"), "ca.pem", print) == "model-1"
    assert asked == [("http://door", "key", "ca.pem")]
    assert cluster.closed


def test_a_running_cluster_is_registered_with_its_model_and_has_to_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assemble, "served_model", lambda *_: "model-1")
    backend = ScriptedBackend(lambda shape, number: True, remote=lambda shape: bool(shape.prefill))
    monkeypatch.setattr(assemble, "running", lambda *_: backend)
    trace, out = write_log(tmp_path / "mine.jsonl"), tmp_path / "out"
    options = {"slo": "ttft_ms=1,tpot_ms=1", "blocks": 4, "running": True, "out": out}
    assert falsify(str(trace), **options) == 1  # type: ignore[arg-type]  # it serves "model"
    assert "the trial is void: model is served, and model-1 was registered" in capsys.readouterr().err
    design = json.loads((out / "design.json").read_text())["design"]
    assert design["model"] == "model-1"
    assert design["settle_requests"] == 2
    assert design["program"] == program()
    assert design["program"].startswith("diptych ")


def test_a_router_with_another_policy_makes_a_trial_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before its first request: else it would compare a policy with itself."""

    class AlwaysByLoad(ScriptedBackend):
        async def shape(self, shape: Shape) -> tuple[str, str]:
            Placement("least-load", "auto").check(shape, "http://router")
            return await super().shape(shape)

    backend = AlwaysByLoad(lambda shape, number: True)
    monkeypatch.setattr(assemble, "started", lambda *_: backend)
    trace, out = write_log(tmp_path / "mine.jsonl"), tmp_path / "out"
    options = {"slo": "ttft_ms=1,tpot_ms=1", "question": "cache-aware", "prefill": 0, "decode": 2, "blocks": 4}
    assert falsify(str(trace), **options, out=out) == 1  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert "the trial is void: the router at http://router places by least-load" in said
    assert backend.closed
    assert not (out / "verdict.json").exists()
    shapes = [call[1] for call in backend.calls if call[0] == "measure"]
    assert {shape.policy for shape in shapes} <= {"least-load"}  # what was measured, was what it says


def test_arms_that_are_what_they_say_are_compared(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda shape, number: True, remote=lambda shape: bool(shape.prefill))
    assert len(run(backend, tmp_path).blocks) == 8
    assert {call[2].extra_body["return_report"] for call in backend.calls if call[0] == "measure"} == {True}
    never = ScriptedBackend(lambda shape, number: True, remote=lambda shape: False)
    assert len(run(never, tmp_path / "cache", question="cache-aware").blocks) == 8  # there the router may choose


@pytest.mark.parametrize(
    ("simulated", "label"),
    [(True, "SIMULATED, not measured"), (None, "not known whether a model computed"), (False, "")],
)
def test_a_cluster_without_a_model_is_labelled(tmp_path: Path, simulated: bool | None, label: str) -> None:
    trial = run(ScriptedBackend(lambda shape, number: bool(shape.prefill), simulated=simulated), tmp_path)
    verdict = judge(a_design(), trial.blocks)
    said = (verdict_text(a_design(), trial.blocks, verdict), page(a_design(), trial.blocks, verdict))
    for text in said:
        assert label in text
        assert ("SIMULATED" in text) is (simulated is True)
    assert as_data(a_design(), trial.blocks, verdict, 0)["simulated"] is simulated


def test_a_file_by_its_format_is_read_whole(tmp_path: Path) -> None:
    trace = write_log(tmp_path / "mine.jsonl", 60)
    options = {"rate": 0.0, "speedup": 1.0, "jitter_ms": None, "limits": (None, None), "warmup_share": 0.0}
    found, _ = assemble.read_traffic(f"log:{trace}", num_requests=40, **options)  # type: ignore[arg-type]
    assert (found.trace, found.requests_in_trace) == ("mine.jsonl", 60)
    options["rate"] = 2.0
    generated, _ = assemble.read_traffic("sessions:turns=3..6", num_requests=40, **options)  # type: ignore[arg-type]
    assert generated.requests_in_trace == 40


def test_a_cluster_file_is_what_it_says_and_flags_are_stronger(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[cluster]\nmodel = "file"\ncores_per_worker = 3\n')
    read = [assemble.read_cluster(file, model, cores) for model, cores in (("", 0), ("flag", 2))]
    assert [(each.model, each.cores_per_worker) for each in read] == [("file", 3), ("flag", 2)]
    assert assemble.read_cluster(None, "", 0).model == "smollm2-135m-instruct"
    for text in ('model = "file"\n', "cluster = 3\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"mine\.toml has no table \[cluster\]"):
            assemble.read_cluster(file, "", 0)


def test_what_decides_is_in_the_hash(tmp_path: Path) -> None:
    trace, cluster = write_log(tmp_path / "mine.jsonl"), tmp_path / "mine.toml"
    cluster.write_text("[cluster]\nworker_options = {kv_cache_bytes = 268435456}\n")
    base = {"slo": "ttft_ms=90,tpot_ms=1000", "blocks": 4, "register_only": True}
    changes: list[dict[str, object]] = [
        {},
        {"cluster": cluster},
        {"lag_limit_ms": 99.0},
        {"timeout": 1.0},
        {"processes": 2},
        {"vocabulary_size": 500},
        {"simulate": True, "engine": ENGINE},
        {"simulate": True, "engine": replace(ENGINE, kv_tokens=20_000)},
    ]
    found = set()
    for number, change in enumerate(changes):
        out = tmp_path / str(number)
        assert falsify(str(trace), **base, **change, out=out) == REGISTERED  # type: ignore[arg-type]
        found.add(json.loads((out / "design.json").read_text())["sha256"])
    assert len(found) == len(changes)
