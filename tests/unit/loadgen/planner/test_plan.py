"""`plan` from a trace to what it says, on small simulated clusters; and the simulator held against a measured run."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from pathlib import Path

import msgspec
import pytest

from diptych.engine.sim.timing_spec import TimingFile
from loadgen.arrivals import OpenLoop, Piece, TraceTimes
from loadgen.client.config import RunConfig
from loadgen.experiment.cells import Cell
from loadgen.experiment.results import CellRun
from loadgen.experiment.shape import Shape
from loadgen.experiment.simulated import Simulation
from loadgen.experiment.tables import SimSpec
from loadgen.planner.backtest import backtest
from loadgen.planner.cli import MISSED, plan
from loadgen.planner.options import EngineOptions, parse_slo
from loadgen.planner.same_traffic import differences
from loadgen.planner.traffic import is_generator, load_traffic
from loadgen.planner.usage import WRONG_USAGE
from loadgen.report.result import RunResult

FITTED = "fitted:prefill_c0_ms=10,prefill_c1_ms_per_token=0.1,decode_c0_ms=10,decode_c1_ms_per_row=0.2"
ENGINE = EngineOptions(timing=FITTED, kv_tokens=40_000, kv_bytes_per_token=1_000, max_batch_tokens=256, hop_ms=0.0)


def write_log(path: Path, num_requests: int = 60, gap_ms: float = 100.0) -> Path:
    lines = [
        {"arrival_ms": gap_ms * i, "input_tokens": 400 + 37 * (i % 5), "output_tokens": 20 + i % 7, "block_tokens": 16}
        for i in range(num_requests)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_plan_says_everything_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    code = plan(str(trace), slo="ttft_ms=500,tpot_ms=12", workers=3, seeds=3, engine=ENGINE, json=True)
    said = json.loads(capsys.readouterr().out)
    assert code in (0, MISSED)
    assert (code == 0) == said["meets_target"]
    assert {cell["fleet"] for cell in said["cells"]} == {"1P+2D", "2P+1D", "3"}
    assert said["exact"]
    assert not said["backtested"]
    assert said["disaggregation"] in ("pays", "does not pay", "cannot tell", "makes no difference")
    assert said["runs"] >= 6 + 2 * 3
    assert said["best_ratio"]["fleet"] in said["flat"]
    assert said["gain_over_colocated"]["num_samples"] == 3


def test_a_tight_inter_token_limit_pays_and_a_wide_one_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colocated workers stall every token behind somebody's prompt, of 50 ms and more; the limits decide."""
    trace = write_log(tmp_path / "mine.jsonl")
    plan(str(trace), slo="ttft_ms=2000,tpot_ms=11.5", workers=3, seeds=3, engine=ENGINE)
    tight = capsys.readouterr().out
    assert "Disaggregation pays" in tight
    plan(str(trace), slo="ttft_ms=90,tpot_ms=1000", workers=3, seeds=4, engine=ENGINE)
    wide = capsys.readouterr().out
    assert "Disaggregation does not pay" in wide
    assert all("Not back-tested" in said for said in (tight, wide))


def test_the_fewest_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_log(tmp_path / "mine.jsonl", gap_ms=60.0)
    code = plan(str(trace), slo="ttft_ms=400,tpot_ms=1000", max_workers=6, seeds=2, engine=ENGINE, json=True)
    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert 1 < said["num_workers"] < 6
    assert said["by_size"][str(said["num_workers"] - 1)] < 0.9 <= said["by_size"][str(said["num_workers"])]
    code = plan(str(trace), slo="ttft_ms=1,tpot_ms=1", max_workers=2, seeds=2, engine=ENGINE, json=True)
    assert code == MISSED


def test_a_large_fleet_is_told_with_the_ends_of_what_is_as_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_log(tmp_path / "mine.jsonl", gap_ms=20.0)
    options = {"slo": "ttft_ms=80,tpot_ms=11", "workers": 20, "seeds": 2, "engine": ENGINE}
    plan(str(trace), **options, json=True)  # type: ignore[arg-type]
    said = json.loads(capsys.readouterr().out)
    region = said["flat_range"]
    assert not said["exact"]
    assert region["first"] in said["flat"]
    assert region["last"] in said["flat"]
    assert said["num_simulated"] <= said["num_ratios"] == 19
    plan(str(trace), **options)  # type: ignore[arg-type]
    text = capsys.readouterr().out
    assert f"{region['first']} to {region['last']}, supposing a single peak" in text
    for beside in (region["below"], region["above"]):
        assert beside is None or f"{beside} (" in text
    assert f"Simulated were {said['num_simulated']} of 19 ratios" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slo": "ttft_ms=1"}, "tpot_ms"),
        ({"slo": "ttft_ms=1,tpot_ms=1,ttfb=3"}, "ttfb"),
        ({"slo": "ttft_ms=1,tpot_ms=1", "workers": 0}, "--workers"),
        ({"slo": "ttft_ms=1,tpot_ms=1", "workers": 2, "max_workers": 3}, "--workers"),
        ({"slo": "ttft_ms=1,tpot_ms=1", "engine": EngineOptions(timing=FITTED)}, "kv-tokens"),
        ({"slo": "ttft_ms=1,tpot_ms=1", "engine": EngineOptions(timing="quick")}, "quick"),
        ({"slo": "ttft_ms=1,tpot_ms=1", "rate": 3.0, "speedup": 2.0}, "rate"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, object], words: str
) -> None:
    trace = write_log(tmp_path / "mine.jsonl", 4)
    given: dict[str, object] = {"workers": 2, "engine": ENGINE, **options}
    assert plan(str(trace), **given) == WRONG_USAGE == 2  # type: ignore[arg-type]
    assert words in capsys.readouterr().err


def test_traffic_of_other_formats_and_generators(tmp_path: Path) -> None:
    azure = tmp_path / "azure.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:01:51.16,4808,10\n2023-11-16 18:01:52,1,8\n"
    )
    assert [each.input_length for each in load_traffic(str(azure)).requests] == [4808, 1]
    generated = load_traffic("sessions:turns=3", num_requests=9, rate=2.0)
    assert len(list(generated.arrivals(0).planned())) == 9
    times = [[each.arrival_ns for each in generated.arrivals(seed).planned()] for seed in (0, 0, 1)]
    assert times[0] == times[1] != times[2]
    with pytest.raises(ValueError, match="rate"):
        load_traffic("sessions:turns=3", num_requests=9)
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text('{"when": 3}\n')
    with pytest.raises(ValueError, match="format"):
        load_traffic(str(unknown))


def test_formats_by_name_and_any_generator(tmp_path: Path) -> None:
    trace = write_log(tmp_path / "mine.jsonl", 4)
    for given in (str(trace), f"log:{trace}"):
        assert not is_generator(given)
        assert (load_traffic(given).name, len(load_traffic(given).requests)) == ("mine.jsonl", 4)
    for generator in ("sessions:turns=3..6", "prefix-share:share=0.5,input=64", "3*sessions:turns=2..3+0.5*documents"):
        assert is_generator(generator)
        assert len(load_traffic(generator, num_requests=5, rate=2.0).requests) == 5
    with pytest.raises(ValueError, match=r"mein\.jsonl: there is no such file.*sessions.*mooncake"):
        load_traffic("mein.jsonl")


def test_slo() -> None:
    assert parse_slo("ttft_ms=1000,tpot_ms=50").attainment == 0.9
    for text in ("", "ttft_ms=0,tpot_ms=1", "ttft_ms=1,tpot_ms=1,attainment=2", "ttft_ms=x,tpot_ms=1"):
        with pytest.raises(ValueError):
            parse_slo(text)


def measured_run(folder: Path, trace: Path, *, slower: float = 1.0, simulated: bool = False) -> Path:
    """A run as `loadgen run` leaves it, of a cluster that is so much slower than the engine that predicts it."""
    fitted = {
        "prefill_c0_ms": 10 * slower,
        "prefill_c1_ms_per_token": 0.1 * slower,
        "prefill_c2_ms_per_token2": 0.0,
        "decode_c0_ms": 10 * slower,
        "decode_c1_ms_per_row": 0.2 * slower,
        "decode_c2_ms_per_token": 0.0,
    }
    spec = SimSpec(fitted=fitted, kv_bytes_per_token=1_000, kv_cache_bytes=40_000_000, max_running=256, hop_ms=0.0)
    config = RunConfig(
        base_url="http://simulated",
        model="simulated",
        workload=f"log:{trace}",
        arrivals=TraceTimes(jitter_ms=30.0),
        warmup_s=1.0,
        seed=3,
        ttft_limit_ms=500,
        tpot_limit_ms=15,
    )
    shape = Shape(prefill=1, decode=2, max_batch_tokens=256)
    result, _ = asyncio.run(Simulation(spec).measure(config, shape, folder / "requests.jsonl"))
    assert result.simulated
    result = msgspec.structs.replace(result, simulated=simulated)
    path = folder / "mine-3.run.json"
    path.write_bytes(msgspec.json.encode(result))
    return path


def test_a_backtest_predicts_the_very_plan_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    run = measured_run(tmp_path, trace)
    options = {"slo": "ttft_ms=500,tpot_ms=15", "workers": 3, "seeds": 1, "engine": ENGINE, "backtest": (run,)}
    plan(str(trace), **options, backtest_fleet=("1P+2D",), json=True)  # type: ignore[arg-type]
    (test,) = json.loads(capsys.readouterr().out)["backtests"]
    assert (test["same_traffic"], test["differs"]) == (True, [])
    assert test["num_requests"] < 60
    for each in test["compared"]:
        assert each["predicted"] == pytest.approx(each["measured"], rel=1e-6), each["name"]
    slow = measured_run(tmp_path, trace, slower=1.25)
    plan(str(trace), **{**options, "backtest": (slow,)}, backtest_fleet=("1P+2D",))  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "Back-tested against mine-3.run.json" in said
    assert "other traffic" not in said
    assert re.search(r"ttft_mean_ms .* -2[0-2]%", said)  # a quarter slower than predicted
    assert plan(str(trace), **options, backtest_fleet=()) == 1  # type: ignore[arg-type]
    assert "--backtest-fleet" in capsys.readouterr().err


def test_a_run_of_other_traffic_is_told_with_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured_run(tmp_path, write_log(tmp_path / "mine.jsonl"))
    doubled = write_log(tmp_path / "other" / "mine.jsonl", gap_ms=50.0)  # of the same name
    options = {"slo": "ttft_ms=500,tpot_ms=15", "workers": 2, "seeds": 1, "engine": ENGINE, "backtest": (run,)}
    plan(str(doubled), **options, requests=40, backtest_fleet=("1P+2D",))  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "That run was of other traffic than this plan: other requests or times" in said
    assert "60 requests, and here 40" in said


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        ({}, []),
        ({"speedup": 2.0}, ["sent at trace times, and here trace times × 2"]),
        ({"rate": 10.0}, ["sent at trace times, and here 10/s poisson"]),
        ({"max_input": 450}, ["not cut, and here cut to 450 in"]),
        ({"max_input": 9_000}, []),  # which cuts nothing
        ({"num_requests": 50}, ["60 requests, and here 50"]),
    ],
)
def test_what_a_run_and_a_plan_of_one_file_have_not_in_common(
    tmp_path: Path, given: dict[str, float], differs: list[str]
) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    config = RunConfig(base_url="http://server", model="model", workload=f"log:{trace}", arrivals=TraceTimes())
    copied = tmp_path / "copied.jsonl"
    copied.write_bytes(trace.read_bytes())
    for file in (trace, copied):
        assert differences(config, load_traffic(str(file), **given)) == differs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "rate", "differs"),
    [
        ("shared-system:output=8,user=20..60", 3.0, []),  # in another order
        ("independent:output=8", 3.0, ["shared-system:user=20..60,output=8, and here independent:output=8"]),
        ("shared-system:user=20..60,output=8", 6.0, ["sent at 3/s poisson, and here 6/s poisson"]),
    ],
)
def test_what_a_run_and_a_plan_of_generators_have_not_in_common(spec: str, rate: float, differs: list[str]) -> None:
    """Of one generator seeds draw other requests, which are the same traffic."""
    config = RunConfig(
        base_url="http://server",
        model="model",
        workload="shared-system:user=20..60,output=8",
        arrivals=OpenLoop((Piece(60.0, 3.0, 3.0),)),
        num_requests=20,
        seed=5,
    )
    assert differences(config, load_traffic(spec, num_requests=20, rate=rate)) == differs


def test_bursts_and_ramps_are_not_a_level_rate() -> None:
    level, ramp = (Piece(20.0, 3.0, 3.0),), (Piece(20.0, 1.0, 3.0),)
    base = {"base_url": "http://server", "model": "model", "workload": "independent:output=8", "num_requests": 20}
    traffic = load_traffic("independent:output=8", num_requests=20, rate=3.0)
    for arrivals in (OpenLoop(level, "gamma", 0.5), OpenLoop(level, "constant"), OpenLoop(ramp)):
        assert len(differences(RunConfig(**base, arrivals=arrivals), traffic)) == 1  # type: ignore[arg-type]


def test_a_simulated_run_is_no_test_of_the_simulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    run = measured_run(tmp_path, trace, simulated=True)
    options = {"slo": "ttft_ms=500,tpot_ms=15", "workers": 2, "seeds": 1, "engine": ENGINE, "backtest": (run,)}
    assert plan(str(trace), **options, backtest_fleet=("1P+1D",)) == 1  # type: ignore[arg-type]
    assert "was simulated" in capsys.readouterr().err


def test_a_backtest_of_a_cell_places_as_the_cell_did(tmp_path: Path) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    result = msgspec.json.decode(measured_run(tmp_path, trace).read_bytes(), type=RunResult)
    made = ENGINE.engine(load_traffic(str(trace)))
    figures = {}
    for remote_prefill in ("never", "always"):
        cell = Cell(
            mode="disaggregated",
            prefill=2,
            decode=1,
            policy="min-ttft",
            remote_prefill=remote_prefill,
            max_batch_tokens=256,
            rate=10.0,
        )
        path = tmp_path / f"{remote_prefill}.json"
        path.write_bytes(msgspec.json.encode(CellRun(cell=cell, seed=3, result=result)))
        found = backtest(path, None, made, "min_ttft", load_traffic(str(trace)))
        figures[remote_prefill] = [each.predicted for each in found.compared]
    assert figures["never"] != figures["always"]


def test_a_measured_timing_brings_its_way_and_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_log(tmp_path / "mine.jsonl")
    run = measured_run(tmp_path, trace)
    config = msgspec.json.decode(run.read_bytes(), type=RunResult).config
    ways, said = {0.0: (), 7.0: (f"{config.seed}/{config.salt}",)}, []
    for way_ms, runs in ways.items():
        file = tmp_path / f"{way_ms}.json"
        file.write_bytes(msgspec.json.encode(TimingFile(timing=FITTED, hop_ms=way_ms, runs=list(runs))))
        engine = dataclasses.replace(ENGINE, timing=f"measured:{file}", hop_ms=None)
        options = {"workers": 3, "seeds": 1, "engine": engine, "backtest": (run,), "backtest_fleet": ("1P+2D",)}
        plan(str(trace), slo="ttft_ms=500,tpot_ms=15", **options)  # type: ignore[arg-type]
        said.append(capsys.readouterr().out)
        plan(str(trace), slo="ttft_ms=500,tpot_ms=15", json=True, **options)  # type: ignore[arg-type]
        (test,) = json.loads(capsys.readouterr().out)["backtests"]
        ttft = next(each for each in test["compared"] if each["name"] == "ttft_mean_ms")
        assert ttft["predicted"] - ttft["measured"] == pytest.approx(3 * way_ms, rel=0.3)  # to decode, prefill, back
    assert "is no test" not in said[0]
    assert "The timing was taken from that very run" in said[1]


def test_a_way_that_was_not_measured_is_half_a_millisecond(tmp_path: Path) -> None:
    file = tmp_path / "watched.json"
    file.write_bytes(msgspec.json.encode(TimingFile(timing=FITTED)))
    assert EngineOptions(timing=f"measured:{file}").one_way_ms == EngineOptions().one_way_ms == 0.5
    assert EngineOptions(timing=f"measured:{file}", hop_ms=2.0).one_way_ms == 2.0
