"""The life of a request in virtual time, with step times simple enough to work out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sim_cases import BLOCK_SIZE, requests_with_ids, small_config

from diptych.engine.sim.timing import FixedTiming
from loadgen.report.phases import jain
from loadgen.sim.baselines import round_robin
from loadgen.sim.cluster import simulate
from loadgen.sim.config import Fleet
from loadgen.sim.front import GUESS_LASTS_S
from loadgen.sim.metrics import Limits, latency, summarise
from loadgen.sim.policies import POLICIES, policy_named
from loadgen.sim.requests import BlockNames, SimRequest
from loadgen.sim.workload import ClosedLoop, OpenLoop, replay
from loadgen.traces.mooncake import TraceRequest
from router import placer
from router.admission.ask import AdmissionLimits

FIXED = FixedTiming(prefill_ms=10.0, decode_ms=2.0)


def test_alone_on_a_colocated_worker() -> None:
    config = small_config("1", timing=FIXED, hop_ms=0.5)
    (record,) = simulate(config, OpenLoop([SimRequest(0, 0, 9, 5)])).records
    assert record.ttft_ms == pytest.approx(0.5 + 10 + 0.5)
    assert record.e2e_ms == pytest.approx(11 + 4 * 2)
    assert record.tpot_ms == pytest.approx(2)


def test_alone_on_a_pair_the_first_token_does_not_wait_for_the_transfer() -> None:
    """Nine tokens are three blocks of 64 bytes: 1.92 ms at 100 kB/s."""
    config = small_config("1P+1D", timing=FIXED, hop_ms=0.5)
    (record,) = simulate(config, OpenLoop([SimRequest(0, 0, 9, 5)])).records
    assert record.ttft_ms == pytest.approx(0.5 + 0.5 + 0.5 + 10 + 0.5)  # to decode, back, to prefill, computing, back
    transfer_ms = 3 * BLOCK_SIZE * 16 / 1e5 * 1e3 + 0.2 + 0.2  # bytes, latency of the write, of the notification
    assert record.transfer_ns / 1e6 == pytest.approx(transfer_ms)
    assert record.e2e_ms == pytest.approx(12 + transfer_ms + 4 * 2)


def test_blocks_of_a_finished_chunk_travel_while_the_next_one_computes() -> None:
    config = small_config("1P+1D", timing=FIXED, batch=8)
    (record,) = simulate(config, OpenLoop([SimRequest(0, 0, 16, 2)])).records
    assert record.ttft_ms == pytest.approx(20)
    assert record.transfer_ns / 1e6 == pytest.approx(2 * BLOCK_SIZE * 16 / 1e5 * 1e3 + 0.4)  # the last two of four


def test_a_completion_of_one_token_needs_no_transfer_and_leaves_nothing() -> None:
    config = small_config("1P+1D", timing=FIXED, batch=8)
    cluster = simulate(config, OpenLoop([SimRequest(0, 0, 30, 1), SimRequest(1, 5_000_000, 30, 1)]))
    assert all(record.finished for record in cluster.records)
    for worker in cluster.workers:
        worker.scheduler.check()
        stats = worker.scheduler.stats()
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total


def test_who_comes_again_finds_its_prefix() -> None:
    ids = tuple(range(5))
    requests = [SimRequest(i, i * 100_000_000, 22, 3, ids, BLOCK_SIZE) for i in range(3)]
    cluster = simulate(small_config("2"), OpenLoop(requests))
    assert [record.cached for record in cluster.records] == [0, 20, 20]
    assert [record.predicted_cached for record in cluster.records] == [0, 20, 20]
    assert len({record.decode_worker for record in cluster.records}) == 1


def test_a_full_house_refuses() -> None:
    config = small_config("1", timing=FIXED, admission=AdmissionLimits(max_in_flight=2, max_queued=0))
    cluster = simulate(config, OpenLoop([SimRequest(i, 0, 9, 5) for i in range(4)]))
    assert [record.error for record in cluster.records].count("") == 2
    summary = summarise(cluster, Limits(1e9, 1e9))
    assert (summary.num_failed, summary.attainment) == (2, 0.5)


def test_decode_without_room_refuses_after_a_while_and_keeps_nothing() -> None:
    """The first completion needs up to 20 of 24 blocks until 130 ms; the second waits for 12 of them from 90 to 120."""
    config = small_config("1P+1D", timing=FIXED, num_blocks=24, reserve_timeout_ms=30.0)
    requests = [SimRequest(0, 0, 20, 60), SimRequest(1, 90_000_000, 46, 5)]
    cluster = simulate(config, OpenLoop(requests))
    assert [record.error for record in cluster.records] == ["", "no_capacity"]
    assert cluster.front.bookings.total == 0


def test_closed_loop_keeps_so_many_in_flight() -> None:
    config = small_config("1", timing=FIXED, running=8)
    cluster = simulate(config, ClosedLoop(lambda number, now: SimRequest(number, now, 8, 4), 3, 12))
    assert len(cluster.records) == 12
    ends = sorted(record.last_token_ns for record in cluster.records)
    starts = sorted(record.request.arrival_ns for record in cluster.records)
    assert starts[:3] == [0, 0, 0]
    assert starts[3:] == ends[:9]


@pytest.mark.parametrize(
    ("name", "fleet"),
    [(name, fleet) for name in POLICIES for fleet in ("3", "2P+2D") if (name, fleet) != ("min_ttft_remote", "3")],
)
def test_every_policy_serves_everybody(name: str, fleet: str) -> None:
    config = small_config(fleet, policy=policy_named(name, seed=1))
    cluster = simulate(config, OpenLoop(requests_with_ids([(30, 8)] * 20)))
    assert all(record.finished for record in cluster.records)
    if name != "min_ttft":
        assert all((record.prefill_worker >= 0) == ("P" in fleet) for record in cluster.records)
    if name == "round_robin":
        assert {record.decode_worker for record in cluster.records[:3]} == set(range(3) if fleet == "3" else (2, 3))


def test_without_a_prefill_worker_remote_prefill_is_no_capacity() -> None:
    config = small_config("3", policy=policy_named("min_ttft_remote", seed=1))
    (record,) = simulate(config, OpenLoop([SimRequest(0, 0, 9, 5)])).records
    assert record.error == "no_capacity"


def test_an_unknown_policy_or_fleet_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="round_robin"):
        policy_named("best", 0)
    for text in ("", "4P", "4P4D", "P+D", "0"):
        with pytest.raises(ValueError, match="fleet"):
            Fleet.parse(text)
    assert [str(Fleet.parse(text)) for text in ("8", "4P+4D", "1p+2d")] == ["8", "4P+4D", "1P+2D"]


def test_least_load_beats_round_robin_where_prompts_differ() -> None:
    lengths = [(200, 4), (5, 4)] * 20  # every long one to the same worker, if taken in turn
    requests = requests_with_ids(lengths, spread_ms=200.0, num_roots=10)
    config = small_config("2", num_blocks=900, running=8)
    blind, aware = (
        summarise(simulate(replace(config, policy=policy), OpenLoop(requests)))
        for policy in (round_robin, policy_named("least-load", 0))
    )
    assert aware.ttft_ms.p99 < 0.7 * blind.ttft_ms.p99
    assert aware.balance_prompt > blind.balance_prompt


def test_jitter_is_seeded_and_speedup_divides() -> None:
    trace = [TraceRequest(3_000.0 * (i // 4), 100, 2) for i in range(40)]

    def times(**options: float) -> list[int]:
        return [each.arrival_ns for each in replay(trace, **options).planned()]  # type: ignore[arg-type]

    assert times(jitter_ms=3_000.0, seed=1) == times(jitter_ms=3_000.0, seed=1)
    assert times(jitter_ms=3_000.0, seed=1) != times(jitter_ms=3_000.0, seed=2)
    assert times(speedup=2.0) == [time // 2 for time in times()]
    assert times(jitter_ms=3_000.0) == sorted(times(jitter_ms=3_000.0))


def test_names_of_blocks() -> None:
    names = BlockNames(4)
    first = names.of(SimRequest(0, 0, 21, 1, (7, 8), 8))
    second = names.of(SimRequest(1, 0, 21, 1, (7, 9), 8))
    assert len(first) == len(second) == 5
    assert first[:2] == second[:2]
    assert len({*first, *second}) == 8
    assert not {*names.of(SimRequest(2, 0, 21, 1))} & {*names.of(SimRequest(3, 0, 21, 1))}
    with pytest.raises(ValueError, match="does not divide"):
        BlockNames(3).of(SimRequest(0, 0, 21, 1, (7, 8), 8))


def test_numbers() -> None:
    assert jain([1, 1, 1]) == 1.0
    assert jain([3, 0, 0]) == pytest.approx(1 / 3)
    assert latency([1.0, 2.0, 3.0]).p50 == 2.0
    assert GUESS_LASTS_S == placer.GUESS_LASTS_S


def test_summary_of_gaps_weighs_every_token(tmp_path: Path) -> None:
    cluster = simulate(small_config("1", timing=FIXED), OpenLoop([SimRequest(0, 0, 9, 101)]))
    summary = summarise(cluster)
    assert cluster.gaps.total == 100
    assert (summary.itl_ms.mean, summary.itl_ms.p99) == (2.0, 2.0)
    assert json.loads(json.dumps(summary.reuse)) == 0.0
