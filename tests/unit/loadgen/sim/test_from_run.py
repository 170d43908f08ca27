"""A timing model from the requests of a run, on a little cluster whose times are known."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import msgspec
import pytest

from diptych.engine.sim.timing import StepShape
from diptych.engine.sim.timing_spec import parse_timing, read_timing_file
from loadgen.arrivals import OpenLoop, parse_rate
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import make_plan
from loadgen.client.records import Cost, Record, write_records
from loadgen.report.result import machine, make_result
from loadgen.sim.from_run import FromRun, timing_of_runs
from loadgen.sim.running import timing

C0, C1, D0, D1, HOP = 10.0, 0.5, 20.0, 3.0, 4.0
CHUNK = 512


def served(gap_ms: float, seed: int, remote: bool = True, num_requests: int = 60) -> list[Record]:
    """Prompts one after the other; then steps of whoever is there. With a prefill worker the two do not meet."""
    rng, busy_until = Random(seed), 0.0
    records, came = list[Record](), 0.0
    for index in range(num_requests):
        came += rng.uniform(0.3, 1.7) * gap_ms
        tokens = rng.choice([40, 150, 300, 480])
        began = max(came + 2 * HOP, busy_until)
        busy_until = began + C0 + C1 * tokens
        records.append(
            Record(
                index=index,
                intended_ms=came,
                ttft_ms=busy_until + HOP - came if remote else busy_until - came,
                planned_input=tokens,
                planned_output=rng.randrange(10, 30),
                prompt_tokens=tokens,
                status=200,
                cost=Cost(
                    prefill_worker="p" if remote else "",
                    decode_worker="d",
                    computed_tokens=tokens,
                    prefill_ms=C0 + C1 * tokens,
                ),
            )
        )
    decode(records, busy_until)
    return records


def decode(records: list[Record], until: float) -> None:
    now = 0.0
    while now < until + 10_000:
        first = [each.intended_ms + (each.ttft_ms or 0.0) for each in records]
        there = [
            each
            for each, began in zip(records, first, strict=True)
            if began <= now and len(each.itl_ms) < each.planned_output - 1
        ]
        if not there:
            now += 1.0
            continue
        now += D0 + D1 * len(there)
        for each in there:
            each.itl_ms.append(now - each.intended_ms - (each.ttft_ms or 0.0) - sum(each.itl_ms))
    for each in records:
        each.e2e_ms = (each.ttft_ms or 0.0) + sum(each.itl_ms)
        each.output_tokens = each.planned_output


def check(found: FromRun, rel: float, batches: tuple[int, ...] = (1, 3)) -> None:
    assert found.timing.step_ms(StepShape(((0, 300),), 0, 0)) == pytest.approx(C0 + C1 * 300, rel=rel)
    for rows in batches:
        assert found.timing.step_ms(StepShape((), rows, rows * 200)) == pytest.approx(D0 + D1 * rows, rel=rel)


@pytest.mark.parametrize("gap_ms", [1_500.0, 250.0])
def test_what_a_quiet_and_a_busy_cluster_take(gap_ms: float) -> None:
    found = timing_of_runs([served(gap_ms, seed) for seed in (1, 2)], CHUNK)
    check(found, 0.05)
    assert found.hop_ms == pytest.approx(HOP, rel=0.01)


def test_steps_with_prompts_in_them_are_left_out() -> None:
    """One worker does both: its prompts delay nobody here, so whatever overlaps would say something else."""
    quiet = timing_of_runs([served(1_500.0, 1, remote=False)], CHUNK)
    check(quiet, 0.05, batches=(1,))
    assert quiet.hop_ms == pytest.approx(HOP, rel=0.01)


def test_prompts_that_share_steps_are_taken_together() -> None:
    """Both are under way from the first's beginning to the second's end: together they took that long, not each."""
    records = served(1_500.0, 3)
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert first.ttft_ms is not None
        assert first.cost is not None
        assert second.cost is not None
        both = C0 + C1 * (first.planned_input + second.planned_input)
        first_ends = first.intended_ms + first.ttft_ms
        ends = first_ends - first.cost.prefill_ms + both
        second.intended_ms, second.ttft_ms, second.e2e_ms = first.intended_ms, ends - first.intended_ms, 0.0
        second.itl_ms, second.output_tokens = [], 1
        second.e2e_ms = second.ttft_ms
        second.cost = msgspec.structs.replace(second.cost, prefill_ms=both)
    found = timing_of_runs([records], 2 * CHUNK)
    assert found.num_prompts == 30
    assert found.timing.step_ms(StepShape(((0, 300),), 0, 0)) == pytest.approx(C0 + C1 * 300, rel=0.02)


def test_events_that_hold_several_tokens_are_no_long_steps() -> None:
    """Every other token's text is held back until the next; the server does not say so."""
    records = served(1_500.0, 4)
    for each in records:
        gaps = each.itl_ms
        each.itl_ms = [*gaps[:1], *(sum(gaps[at : at + 2]) for at in range(1, len(gaps), 2))]
    check(timing_of_runs([records], CHUNK), 0.08, batches=(1,))
    for each in records:
        each.event_tokens = [1, 1] + [2] * (len(each.itl_ms) - 1)
        each.event_tokens[-1] -= sum(each.event_tokens) - each.output_tokens
    check(timing_of_runs([records], CHUNK), 0.02, batches=(1,))


def test_a_run_that_says_too_little() -> None:
    with pytest.raises(ValueError, match="return_report"):
        timing_of_runs([[Record(index=0, intended_ms=0.0, planned_input=3, planned_output=3)]], CHUNK)
    with pytest.raises(ValueError, match="for longer"):
        timing_of_runs([served(1_500.0, 1)[:4]], CHUNK)


def test_the_command_reads_the_folder_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = served(1_000.0, 1)
    config = RunConfig(
        base_url="http://nowhere",
        model="m",
        workload="independent",
        arrivals=OpenLoop(parse_rate("1", None)),
        num_requests=60,
        seed=5,
        salt=7,
    )
    shard = ShardReport(cpu_share=0.0, loop_lag_ms=[], connections=0)
    result = make_result(config, make_plan(config), records, [shard], "", machine())
    (tmp_path / "mine-5.run.json").write_bytes(msgspec.json.encode(result))
    write_records(tmp_path / "mine-5.requests.jsonl", records)
    out = tmp_path / "timing.json"
    assert timing(str(tmp_path), out=out) == 0
    assert "a way between client, router and worker 4.00 ms" in capsys.readouterr().out
    file = read_timing_file(out)
    assert (file.runs, file.hop_ms) == (["5/7"], pytest.approx(HOP, rel=0.01))
    assert parse_timing(f"measured:{out}").step_ms(StepShape((), 1, 100)) == pytest.approx(D0 + D1, rel=0.05)
    assert json.loads(out.read_text())["source"]["runs"] == 1
    assert timing(str(tmp_path / "nothing"), out=out) == 1
    assert "is no run" in capsys.readouterr().err
