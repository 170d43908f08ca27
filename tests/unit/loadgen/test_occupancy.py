"""How full phases were over time, against cases that one can count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.records import Cost, Record
from loadgen.report.occupancy import busy_workers, in_phase, mean_overlap, union

EDGES_MS = np.asarray([0.0, 100.0, 200.0, 300.0])


def a_record(intended_ms: float, prefill_worker: str = "p0", failure: str = "") -> Record:
    """Waits for 20 ms, is computed for 60, has its KV 20 ms after its first token, and its last 200 ms after it."""
    return Record(
        index=0,
        intended_ms=intended_ms,
        ttft_ms=80.0,
        e2e_ms=280.0,
        planned_input=9,
        planned_output=9,
        failure=failure,
        cost=Cost(prefill_worker=prefill_worker, decode_worker="d0", queue_ms=20.0, prefill_ms=60.0, exposed_ms=20.0),
    )


def test_a_request_is_in_one_phase_after_the_other() -> None:
    found = in_phase([a_record(0.0)], EDGES_MS)
    assert found == {
        "queue": [0.2, 0.0, 0.0],
        "prefill": [0.6, 0.0, 0.0],
        "transfer": [0.2, 0.0, 0.0],
        "decode": [0.0, 1.0, 0.8],
    }
    assert sum(sum(values) for values in found.values()) == pytest.approx(2.8)  # its 280 ms, in slots of 100


def test_a_worker_with_two_requests_is_busy_once() -> None:
    both = [a_record(0.0), a_record(0.0)]
    assert in_phase(both, EDGES_MS)["decode"] == [0.0, 2.0, 1.6]
    assert busy_workers(both, EDGES_MS) == {"prefill": [0.6, 0.0, 0.0], "decode": [0.0, 1.0, 0.8]}
    apart = busy_workers([a_record(0.0), a_record(0.0, "p1")], EDGES_MS)
    assert apart["prefill"] == [1.2, 0.0, 0.0]


def test_failures_and_servers_that_say_nothing_are_not_in_it() -> None:
    silent = Record(index=0, intended_ms=0.0, ttft_ms=80.0, e2e_ms=280.0, planned_input=9, planned_output=9)
    for records in ([silent], [a_record(0.0, failure="timeout")], []):
        assert in_phase(records, EDGES_MS) == {}
        assert busy_workers(records, EDGES_MS) == {}


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair))), min_size=1)


@given(spans)
def test_unions_are_what_counting_milliseconds_gives(found: list[tuple[float, float]]) -> None:
    edges = np.asarray([0.0, 50.0])
    counted = sum(any(start <= at < end for start, end in found) for at in range(50)) / 50
    assert mean_overlap(union(found), edges)[0] == pytest.approx(counted)
