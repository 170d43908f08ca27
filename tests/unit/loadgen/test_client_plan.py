"""What is decided before a run: its times, its shares, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.arrivals import ClosedLoop, OpenLoop, TraceTimes, parse_rate
from loadgen.client.config import RunConfig
from loadgen.client.plan import make_plan
from loadgen.client.sender import clients_of_shard


def config_of(**fields: Any) -> RunConfig:
    return RunConfig(base_url="http://h:1", model="m", **({"workload": "independent:input=8,output=2"} | fields))


@pytest.mark.parametrize("kind", ["mooncake", "bailian"])
def test_a_slice_of_a_trace_begins_with_the_run(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "slice.jsonl"
    times = (3_000_000, 3_000_700, 3_002_000)
    unit = 1 if kind == "mooncake" else 1e-3
    lines = [{"timestamp": at * unit, "input_length": 8, "output_length": 2, "hash_ids": [1]} for at in times]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    plan = make_plan(config_of(arrivals=TraceTimes(speedup=2), workload=f"{kind}:{path}"))
    assert [each.due_ms for each in plan.requests] == pytest.approx([0, 350, 1_000])
    assert plan.horizon_ms == pytest.approx(1_000)


def test_more_processes_than_clients_are_refused() -> None:
    with pytest.raises(ValueError, match="3 processes for 1 requests at a time"):
        config_of(arrivals=ClosedLoop(1), num_requests=12, processes=3)
    config_of(arrivals=ClosedLoop(3), num_requests=12, processes=3)
    config_of(arrivals=OpenLoop(parse_rate("1", None)), num_requests=12, processes=3)


@pytest.mark.parametrize(("clients", "processes"), [(3, 2), (4, 2), (5, 3), (7, 4), (2, 2)])
def test_every_client_of_a_closed_loop_has_as_many_requests(clients: int, processes: int) -> None:
    plan = make_plan(config_of(arrivals=ClosedLoop(clients), num_requests=clients * 10, processes=processes))
    shares = [plan.shard(number, processes) for number in range(processes)]
    assert sorted(each.index for share in shares for each in share) == list(range(clients * 10))
    for number, share in enumerate(shares):
        assert len(share) == 10 * clients_of_shard(clients, number, processes)


def test_no_time_for_a_request_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 8, "output_length": 2}', encoding="utf-8")
    for workload in ("independent", f"mooncake:{path}"):
        with pytest.raises(ValueError, match="no request is sent in this time"):
            make_plan(config_of(arrivals=OpenLoop(parse_rate("0.001", 0.1)), duration_s=0.1, workload=workload))
