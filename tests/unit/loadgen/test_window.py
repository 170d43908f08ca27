"""Which part of a run counts: what rates are over, in closed and open loops, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen.arrivals import ClosedLoop, OpenLoop, TraceTimes, parse_rate
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.plan import make_plan
from loadgen.client.records import Record
from loadgen.report.export import json_bytes
from loadgen.report.figures import GOODPUT, group
from loadgen.report.page import report_page
from loadgen.report.result import RunResult, machine, make_result
from loadgen.report.terminal import summary_text

LIMIT_MS = 1e6


def config_of(**fields: Any) -> RunConfig:
    given: dict[str, Any] = {"workload": "independent:input=8,output=2", "ttft_limit_ms": LIMIT_MS, **fields}
    return RunConfig(base_url="http://127.0.0.1:1", model="m", tpot_limit_ms=LIMIT_MS, **given)


def answered(index: int, intended_ms: float, e2e_ms: float, **fields: Any) -> Record:
    """Two tokens, the second 1 ms behind the first."""
    given: dict[str, Any] = {"ttft_ms": e2e_ms - 1, "e2e_ms": e2e_ms, "itl_ms": [1.0], "output_tokens": 2, **fields}
    return Record(index=index, intended_ms=intended_ms, planned_input=8, planned_output=2, **given)


def result_of(config: RunConfig, records: Sequence[Record], interrupted: bool = False) -> RunResult:
    shard = ShardReport(cpu_share=0.1, loop_lag_ms=[0.1], connections=1, interrupted=interrupted)
    return make_result(config, make_plan(config), list(records), [shard], "2025-01-31T12:00:00+00:00", machine())


def rounds(clients: int, e2e_ms: float, until_ms: float) -> list[Record]:
    """What a closed loop leaves of a server that takes `e2e_ms` for every answer."""
    starts = [at * e2e_ms for at in range(int(-(-until_ms // e2e_ms)))]
    return [answered(n, at, e2e_ms) for n, at in enumerate(at for at in starts for _ in range(clients))]


def test_a_closed_loop_is_measured_for_as_long_as_it_was_asked_to_send() -> None:
    """16 clients, answers of 10 s, 30 s: the last answers go out at 20 s. 48 answers in 30 s."""
    summary = result_of(config_of(arrivals=ClosedLoop(16), duration_s=30.0), rounds(16, 10_000, 30_000)).summary
    assert summary.window_s == 30
    assert summary.goodput.requests_per_s == summary.requests_per_s == pytest.approx(1.6)
    assert summary.offered_per_s == pytest.approx(1.6)


def test_answers_that_end_after_the_time_do_not_count_and_are_measured() -> None:
    """4 clients, answers of 11 s: 8 end in 30 s, 12 were sent. In 30 s a client gets through 2.7."""
    config = config_of(arrivals=ClosedLoop(4), duration_s=30.0)
    summary = result_of(config, rounds(4, 11_000, 30_000)).summary
    assert summary.goodput.requests_per_s == summary.requests_per_s == pytest.approx(8 / 30)
    assert (summary.measured, summary.goodput.attainment, summary.latencies["e2e"].count) == (12, 1, 12)


def test_one_round_of_a_closed_loop_takes_as_long_as_its_answers() -> None:
    result = result_of(config_of(arrivals=ClosedLoop(16), num_requests=16), rounds(16, 10_000, 10_000))
    assert result.valid
    assert (result.summary.window_s, result.summary.measured) == (10, 16)
    assert result.summary.goodput.requests_per_s == result.summary.offered_per_s == pytest.approx(1.6)


def test_a_closed_loops_warm_up_is_apart() -> None:
    config = config_of(arrivals=ClosedLoop(2), duration_s=30.0, warmup_s=12.0, tail_s=5.0)
    summary = result_of(config, rounds(2, 5_000, 30_000)).summary
    assert (summary.warmup, summary.measured, summary.tail) == (6, 6, 0)  # sent at 0, 5, 10; 15, 20, 25
    assert summary.window_s == 13  # 12 to 25, in which end those of 10, 15 and 20
    assert summary.goodput.requests_per_s == summary.requests_per_s == pytest.approx(6 / 13)


def test_a_closed_loops_interval_is_about_its_goodput() -> None:
    records = rounds(4, 11_000, 1_000_000)
    for record in records[::3]:
        record.ttft_ms = 2 * LIMIT_MS
    result = result_of(config_of(arrivals=ClosedLoop(4), duration_s=1_000.0), records)
    interval = GOODPUT.interval(result.summary)
    assert interval is not None
    assert interval.low <= result.summary.goodput.requests_per_s <= interval.high
    assert result.summary.goodput.requests_per_s <= result.summary.requests_per_s


def test_an_open_loop_whose_requests_are_all_due_at_once_is_measured_until_they_are_answered(tmp_path: Path) -> None:
    trace = written(tmp_path, [0, 0, 0, 0])
    config = config_of(arrivals=TraceTimes(), workload=f"mooncake:{trace}")
    result = result_of(config, [answered(n, 0.0, 1_000.0 * (n + 1)) for n in range(4)])
    assert result.summary.window_s == 4
    assert result.summary.goodput.requests_per_s == result.summary.offered_per_s == pytest.approx(1)


@pytest.mark.parametrize("spacing", ["constant", "poisson"])
def test_one_request_of_an_open_loop_is_no_rate_of_a_million(spacing: Any) -> None:
    config = config_of(arrivals=OpenLoop(parse_rate("5", None), spacing), num_requests=1)
    due_ms = make_plan(config).requests[0].due_ms
    result = result_of(config, [answered(0, due_ms, 2_000.0)])
    assert result.summary.measured == 1
    assert result.summary.goodput.requests_per_s == pytest.approx(1e3 / (due_ms + 2_000))


def test_a_run_that_took_no_time_has_no_rates_and_is_invalid() -> None:
    config = config_of(arrivals=OpenLoop(parse_rate("5", None), "constant"), num_requests=1)
    failed = answered(0, 0.0, 0.0, failure="connect", ttft_ms=None, itl_ms=[], output_tokens=0)
    result = result_of(config, [failed])
    assert not result.valid
    assert any("took no time" in reason for reason in result.invalid_because)
    assert result.summary.offered_per_s == 0


def written(folder: Path, times_ms: Sequence[float]) -> Path:
    path = folder / "trace.jsonl"
    lines = [{"timestamp": at, "input_length": 8, "output_length": 2, "hash_ids": [1]} for at in times_ms]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def ran(config: RunConfig, e2e_ms: float = 100.0) -> RunResult:
    """Every request was sent when it was due."""
    return result_of(config, [answered(each.index, each.due_ms, e2e_ms) for each in make_plan(config).requests])


def test_a_workload_that_runs_out_ends_the_measured_time_and_it_is_said(tmp_path: Path) -> None:
    """50 requests at 10/s for 600 s."""
    config = config_of(
        arrivals=OpenLoop(parse_rate("10", 600.0)), duration_s=600.0, workload=f"mooncake:{written(tmp_path, [0] * 50)}"
    )
    result = ran(config)
    assert result.valid
    assert 2 < result.summary.window_s < 10
    assert result.summary.goodput.requests_per_s == pytest.approx(50 / result.summary.window_s)
    (remark,) = result.remarks
    assert "ran out: it has 50 requests" in remark
    series = group([result])
    assert "ran out" in summary_text(series)
    assert "ran out" in report_page(series)
    assert json.loads(json_bytes(series))[0]["remarks"] == result.remarks


@pytest.mark.parametrize(
    ("fields", "is_out"),
    [
        ({"arrivals": OpenLoop(parse_rate("10", 2.0)), "duration_s": 2.0}, False),  # the time ends it
        ({"arrivals": OpenLoop(parse_rate("10", None)), "num_requests": 20}, False),  # the number
        ({"arrivals": OpenLoop(parse_rate("10", None)), "num_requests": 60}, True),
        ({"arrivals": TraceTimes(), "duration_s": 600.0}, True),
        ({"arrivals": TraceTimes()}, False),  # all of it was asked for
        ({"arrivals": TraceTimes(), "duration_s": 2.0}, False),
    ],
)
def test_what_ended_a_run(fields: dict[str, Any], is_out: bool, tmp_path: Path) -> None:
    trace = written(tmp_path, [100.0 * number for number in range(50)])
    result = ran(config_of(workload=f"mooncake:{trace}", **fields))
    assert bool(result.remarks) is is_out
    if "duration_s" in fields and not is_out:
        assert result.summary.window_s == 2


def test_a_closed_loop_whose_workload_runs_out(tmp_path: Path) -> None:
    trace = written(tmp_path, [0] * 6)
    config = config_of(arrivals=ClosedLoop(2), duration_s=600.0, workload=f"mooncake:{trace}")
    result = result_of(config, rounds(2, 5_000, 15_000))
    assert result.summary.window_s == 15
    assert "ran out" in result.remarks[0]
    config = config_of(arrivals=ClosedLoop(2), duration_s=10.0, workload=f"mooncake:{trace}")
    assert not result_of(config, rounds(2, 5_000, 10_000)).remarks


def test_planned_requests_that_were_never_sent_make_a_closed_loop_invalid_too() -> None:
    result = result_of(config_of(arrivals=ClosedLoop(2), num_requests=12), rounds(2, 5_000, 10_000))
    assert result.invalid_because == ["8 planned requests were never sent"]
    timed = config_of(arrivals=ClosedLoop(2), num_requests=12, duration_s=10.0)
    assert result_of(timed, rounds(2, 5_000, 10_000)).valid  # "at most so many", and the time was over


def test_a_run_that_was_stopped_is_measured_until_then() -> None:
    config = config_of(arrivals=OpenLoop(parse_rate("10", 600.0)), duration_s=600.0)
    records = [answered(each.index, each.due_ms, 100.0) for each in make_plan(config).requests[:50]]
    result = result_of(config, records, interrupted=True)
    assert result.invalid_because == ["the run was stopped before its end"]
    assert result.summary.window_s < 20


def test_what_a_reader_has_to_know_is_said() -> None:
    config = config_of(arrivals=OpenLoop(parse_rate("10", None)), num_requests=4)
    planned = make_plan(config).requests
    kinds: list[dict[str, Any]] = [
        {},
        {"output_tokens": 1, "itl_ms": []},
        {"output_tokens": 2, "itl_ms": []},
        {"tokens_counted": False},
    ]
    records = [answered(each.index, each.due_ms, 9.0, **kind) for each, kind in zip(planned, kinds, strict=True)]
    remarks = result_of(config, records).remarks
    said = ("shorter than they had to be, and so misses of goodput: 1", "first token's decides: 1", "a time per event")
    assert [words in remark for words, remark in zip(said, remarks, strict=True)] == [True] * 3
    assert "being events where" in report_page(group([result_of(config, records)]))
