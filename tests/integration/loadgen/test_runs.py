"""Measured runs against a mock server with a known timetable: in processes of their own, over real sockets.

Nothing here depends on how fast this machine is: only on what cannot be faster than the timetable, and on counts.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from mock_process import mock_server

from loadgen.arrivals import ClosedLoop, OpenLoop, TraceTimes, parse_rate
from loadgen.client.config import Progress, RunConfig
from loadgen.client.records import Record, read_records
from loadgen.client.run import run_once
from loadgen.report.result import RunResult

LONG_MS = 60_000.0


def config_of(base_url: str, rate: str = "50", **fields: Any) -> RunConfig:
    fields = {
        "arrivals": OpenLoop(parse_rate(rate, None)),
        "num_requests": 30,
        "workload": "independent:input=24,output=5",
        "lag_limit_ms": LONG_MS,
        "ttft_limit_ms": LONG_MS,
        "tpot_limit_ms": LONG_MS,
    } | fields
    return RunConfig(base_url=base_url, model="mock", **fields)


async def run(config: RunConfig, folder: Path, **more: Any) -> tuple[RunResult, list[Record]]:
    path = folder / "records.jsonl"
    result = await run_once(config, records_path=path, **more)
    return result, read_records(path)


async def test_latencies_follow_the_timetable(tmp_path: Path) -> None:
    with mock_server(ttft_ms=80, itl_ms=20) as server:
        result, records = await run(config_of(server.base_url), tmp_path)
        seen = server.seen()
    assert result.valid
    assert (seen["requests"], seen["distinct_prompts"], seen["tokens"]) == (30, 30, 150)
    for record in records:
        assert record.ok
        assert record.ttft_ms is not None
        assert record.e2e_ms is not None
        assert record.ttft_ms >= 79
        assert len(record.itl_ms) == 4
        assert record.ttft_ms + sum(record.itl_ms) == pytest.approx(record.e2e_ms, abs=0.05)
        assert sum(record.itl_ms) >= 55 or record.ttft_ms > 100  # only a late first token shortens what follows
    assert result.summary.latencies["ttft"].count == 30
    assert result.summary.output_tokens_per_s > 0
    assert result.summary.generator.lag_max_ms >= 0


async def test_an_open_loop_does_not_wait_for_a_slow_server(tmp_path: Path) -> None:
    """30 requests in 0.3 s to a server that takes 2 s: all are under way at once."""
    with mock_server(ttft_ms=2_000) as server:
        result, records = await run(config_of(server.base_url, "100"), tmp_path)
        assert server.seen()["connections"] >= 30
    assert max(record.intended_ms for record in records) < 1_500
    assert max(result.summary.timeline.in_flight) == 30


async def test_latency_counts_from_the_intended_time(tmp_path: Path) -> None:
    """All are due within milliseconds, so what is late in sending is in the latency and in the lag."""
    with mock_server(ttft_ms=10) as server:
        _, records = await run(config_of(server.base_url, "100000", num_requests=400), tmp_path)
    assert all(record.ttft_ms is not None and record.ttft_ms >= record.lag_ms + 9 for record in records)


async def test_a_closed_loop_holds_its_number(tmp_path: Path) -> None:
    with mock_server(ttft_ms=5, itl_ms=1) as server:
        config = config_of(server.base_url, arrivals=ClosedLoop(4), num_requests=60, processes=2)
        result, records = await run(config, tmp_path)
        assert server.seen()["connections"] <= 6  # four, the one that asks what is served, and the one that asks here
    assert [record.index for record in sorted(records, key=lambda each: each.index)] == list(range(60))
    moments = sorted(
        [(each.intended_ms, 1) for each in records] + [(each.intended_ms + (each.e2e_ms or 0), -1) for each in records]
    )
    level = highest = 0
    for _, change in moments:
        level += change
        highest = max(highest, level)
    assert 3 <= highest <= 4
    assert result.summary.generator.processes == 2


async def test_a_closed_loop_ends_with_its_duration(tmp_path: Path) -> None:
    with mock_server(ttft_ms=20) as server:
        config = config_of(server.base_url, arrivals=ClosedLoop(2), num_requests=None, duration_s=0.5, tail_s=0.1)
        result, records = await run(config, tmp_path)
    assert 4 <= len(records) <= 50
    assert result.summary.tail > 0


FAULTS = {
    "http_500": "http_500",
    "http_429": "http_429",
    "cut": "cut",
    "error_event": "error_event",
    "empty": "empty",
    "abort": "finish_abort",
    "silent": "timeout",
}


@pytest.mark.parametrize(("fault", "failure"), FAULTS.items())
async def test_failures_are_counted_by_kind(fault: str, failure: str, tmp_path: Path) -> None:
    with mock_server(itl_ms=1, faults={fault: 3}) as server:
        result, records = await run(config_of(server.base_url, "200", timeout_s=3.0), tmp_path)
    assert result.summary.failures == {failure: 10}
    assert result.summary.goodput.attainment == pytest.approx(20 / 30)
    assert result.summary.refused == (10 if fault == "http_429" else 0)
    assert sum(record.ok for record in records) == 20
    assert result.summary.latencies["ttft"].count == 20


async def test_a_server_that_closes_idle_connections_costs_no_request(tmp_path: Path) -> None:
    """`close_idle` closes after an answer; `drop` when the next request is already on the wire."""
    for fault, num_retried in (("close_idle", 0), ("drop", 7)):
        with mock_server(faults={fault: 5}) as server:
            config = config_of(server.base_url, arrivals=ClosedLoop(1))
            result, records = await run(config, tmp_path)
        assert not result.summary.failures
        retried = sum(record.retried for record in records)
        assert result.summary.generator.retried == retried
        assert retried >= num_retried


async def test_no_server_at_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result, _ = await run(config_of(f"http://127.0.0.1:{port}", num_requests=5), tmp_path)
    assert result.summary.failures == {"connect": 5}
    assert result.summary.goodput.requests_per_s == 0


@pytest.mark.parametrize("workload", ["sessions:turns=4,active=2,output=8", "shared-system:system=128,systems=2"])
async def test_hits_are_those_of_the_plan(workload: str, tmp_path: Path) -> None:
    """The mock's cache never ends and holds whole blocks but the last token, as servers do."""
    with mock_server(prefix_cache=True) as server:
        config = config_of(server.base_url, workload=workload, arrivals=ClosedLoop(1), num_requests=60)
        result, _ = await run(config, tmp_path)
        assert server.seen()["distinct_prompts"] == 60
    hit = result.summary.cache.hit_rate
    assert hit is not None
    assert 0.2 < hit <= result.summary.cache.possible_hit_rate <= hit + 0.05


async def test_another_salt_finds_nothing_in_the_cache(tmp_path: Path) -> None:
    with mock_server(prefix_cache=True) as server:
        rates = []
        for salt in (1, 1, 2):
            config = config_of(server.base_url, salt=salt, workload="independent:input=160,output=2")
            rates.append((await run(config, tmp_path))[0].summary.cache.hit_rate)
    assert rates == [0, pytest.approx(0.9), 0]


async def test_the_body_is_what_the_flags_say(tmp_path: Path) -> None:
    with mock_server() as server:
        extra = {"top_p": 0.5, "temperature": None, "stream_options": {"include_usage": True}}
        await run(
            config_of(server.base_url, num_requests=1, extra_body=extra, vocabulary_size=1_000, continuous_usage=True),
            tmp_path,
            headers={"authorization": "Bearer key", "x-tenant": "t"},
        )
        ids = server.seen()
        await run(config_of(server.base_url, num_requests=1, endpoint="chat", ignore_eos=False), tmp_path)
        words = server.seen()
    body = ids["last_body"]
    assert len(body.pop("prompt")) == 24
    assert body == {
        "model": "mock",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "top_p": 0.5,
    }
    assert "authorization: Bearer key" in ids["last_headers"]
    assert "x-tenant: t" in ids["last_headers"]
    (message,) = words["last_body"]["messages"]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 24
    assert "ignore_eos" not in words["last_body"]


async def test_chat_counts_tokens_and_not_its_role(tmp_path: Path) -> None:
    with mock_server(ttft_ms=5, itl_ms=2) as server:
        result, records = await run(config_of(server.base_url, endpoint="chat", num_requests=10), tmp_path)
    assert not result.summary.failures
    assert {(record.output_tokens, len(record.itl_ms)) for record in records} == {(5, 4)}


async def test_several_tokens_in_an_event(tmp_path: Path) -> None:
    with mock_server(itl_ms=10, tokens_per_event=3) as server:
        workload = "independent:input=24,output=7"
        result, records = await run(
            config_of(server.base_url, continuous_usage=True, workload=workload, num_requests=5), tmp_path
        )
    assert {tuple(record.event_tokens) for record in records} == {(3, 3, 1)}
    assert result.summary.itl_basis == "tokens"
    assert result.summary.latencies["itl"].count == 5 * 4  # what follows an event of three, and one of one


async def test_a_trace_at_its_own_times(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [f'{{"timestamp": {at}, "input_length": 20, "output_length": 2, "hash_ids": [1]}}' for at in (0, 300, 900)]
    trace.write_text("\n".join(lines), encoding="utf-8")
    with mock_server() as server:
        config = config_of(
            server.base_url, arrivals=TraceTimes(speedup=3), num_requests=None, workload=f"mooncake:{trace}"
        )
        _, records = await run(config, tmp_path)
    assert [record.intended_ms for record in records] == [0, 100, 300]


async def test_a_run_that_is_stopped_keeps_what_it_has_and_is_invalid(tmp_path: Path) -> None:
    told = asyncio.Event()
    with mock_server(ttft_ms=100) as server:
        config = config_of(server.base_url, "20", num_requests=1_000)
        running = asyncio.ensure_future(run(config, tmp_path, on_progress=lambda _: told.set()))
        await asyncio.wait_for(told.wait(), 30)
        running.cancel()
        result, records = await asyncio.wait_for(running, 30)
    assert result.invalid_because == ["the run was stopped before its end"]
    assert 0 < len(records) < 1_000
    assert any(record.ok for record in records)
    assert {record.failure for record in records} <= {"", "aborted"}


async def test_a_process_that_had_ended_is_not_lost_with_a_run_that_is_stopped(tmp_path: Path) -> None:
    """Of three requests the last, of the first process, is never answered; the other process is done at once."""
    said: list[Progress] = []
    twice = asyncio.Event()

    def on_progress(progress: Progress) -> None:
        said.append(progress)
        if len([each for each in said if each.sent == 3]) >= 3:
            twice.set()

    with mock_server(faults={"silent": 3}) as server:
        config = config_of(server.base_url, num_requests=3, processes=2)
        running = asyncio.ensure_future(run(config, tmp_path, on_progress=on_progress))
        await asyncio.wait_for(twice.wait(), 30)
        running.cancel()
        result, records = await asyncio.wait_for(running, 30)
    assert said[-1].ended >= 2  # the other process's, too
    assert result.invalid_because == ["the run was stopped before its end"]
    assert sorted(record.failure for record in records) == ["", "", "aborted"]


async def test_the_last_that_is_said_is_all_of_it(tmp_path: Path) -> None:
    said: list[Progress] = []
    with mock_server() as server:
        await run(config_of(server.base_url, processes=2), tmp_path, on_progress=said.append)
    assert (said[-1].sent, said[-1].ended) == (30, 30)


async def test_what_is_wrong_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with mock_server() as server:
        with pytest.raises(ValueError, match="no workload"):
            await run(config_of(server.base_url, workload="nothing"), tmp_path)
        with pytest.raises(ValueError, match="no times of its own"):
            await run(config_of(server.base_url, arrivals=TraceTimes()), tmp_path)
        assert server.seen()["requests"] == 0
