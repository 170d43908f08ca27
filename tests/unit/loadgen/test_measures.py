"""Figures against numbers worked out by hand."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from loadgen.arrivals import ClosedLoop, OpenLoop, parse_rate
from loadgen.client.config import RunConfig, ShardReport
from loadgen.client.records import Record, read_records, write_records
from loadgen.report.intervals import block_bootstrap, t_interval
from loadgen.report.measures import inter_token_gaps, summarise
from loadgen.report.summary import Summary

CONFIG = RunConfig(
    base_url="http://127.0.0.1:1",
    model="m",
    workload="independent",
    arrivals=OpenLoop(parse_rate("1", None)),
    ttft_limit_ms=100,
    tpot_limit_ms=20,
)
SHARD = ShardReport(cpu_share=0.25, loop_lag_ms=[0.5, 1.5], connections=3)


def record(intended_ms: float, ttft_ms: float = 50, itl_ms: float = 10, tokens: int = 11, **more: object) -> Record:
    made = Record(
        index=int(intended_ms),
        intended_ms=intended_ms,
        ttft_ms=ttft_ms,
        e2e_ms=ttft_ms + itl_ms * (tokens - 1),
        itl_ms=[itl_ms] * (tokens - 1),
        output_tokens=tokens,
        planned_input=100,
        planned_output=tokens,
        prompt_tokens=100,
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


def failed(intended_ms: float, failure: str) -> Record:
    return Record(index=0, intended_ms=intended_ms, planned_input=100, planned_output=11, failure=failure, e2e_ms=5.0)


def summary(*records: Record, window_ms: tuple[float, float] = (0, 10_000), config: RunConfig = CONFIG) -> Summary:
    return summarise(config, records, [SHARD], window_ms, possible_hit_rate=0.5)


def test_latencies_and_rates() -> None:
    made = summary(*(record(1_000.0 * number, ttft_ms=10.0 * number) for number in range(1, 10)))
    assert made.latencies["ttft"].mean == pytest.approx(50)
    assert made.latencies["ttft"].p50 == 50
    assert made.latencies["ttft"].max == 90
    assert made.latencies["tpot"].p99 == pytest.approx(10)
    assert made.latencies["e2e"].p50 == pytest.approx(150)
    assert made.latencies["itl"].count == 90
    assert made.offered_per_s == pytest.approx(0.9)
    assert made.requests_per_s == pytest.approx(0.9)
    assert made.output_tokens_per_s == pytest.approx(9.9)
    assert made.input_tokens_per_s == pytest.approx(90)


def test_failures_are_misses_and_no_latencies() -> None:
    made = summary(record(0), record(1_000), failed(2_000, "http_503"), failed(3_000, "cut"))
    assert (made.measured, made.succeeded, made.refused) == (4, 2, 1)
    assert made.failures == {"http_503": 1, "cut": 1}
    assert made.latencies["e2e"].count == 2
    assert made.goodput.attainment == 0.5
    assert made.goodput.requests_per_s == pytest.approx(0.2)
    assert made.requests_per_s == pytest.approx(0.2)


def test_goodput_needs_both_limits() -> None:
    made = summary(
        record(0),
        record(1, ttft_ms=100.1),
        record(2, itl_ms=20.1),
        record(3, ttft_ms=100, itl_ms=20),
        record(4, tokens=1),  # no TPOT to miss
    )
    assert made.goodput.attainment == pytest.approx(3 / 5)


CLOSED = msgspec.structs.replace(CONFIG, arrivals=ClosedLoop(2), ttft_limit_ms=1e6)


def test_a_closed_loop_gets_done_what_ends_in_its_time() -> None:
    """One client, answers of 4 s, all in time: one that began in the warm-up ends in the window, the last does not.
    Counted by when they were sent, it would be 2 until the last was sent, at 8 s."""
    sent = [record(at, ttft_ms=3_900, phase="measured" if at >= 2_000 else "warmup") for at in (0, 4_000, 8_000)]
    made = summary(*sent, window_ms=(2_000, 10_000), config=CLOSED)
    assert made.goodput.requests_per_s == made.requests_per_s == pytest.approx(2 / 8)
    assert (made.warmup, made.measured, made.goodput.attainment) == (1, 2, 1)
    assert made.latencies["ttft"].count == 2  # of warm-up, nothing


def test_a_closed_loops_goodput_leaves_out_misses_and_says_its_classes() -> None:
    late = record(0, ttft_ms=2e6, label="a")
    late.e2e_ms = 100.0
    sent = [late, record(0, label="b"), failed(0, "cut"), record(5_000, label="b"), record(9_990, label="a")]
    made = summary(*sent, config=CLOSED)
    assert made.goodput.attainment == pytest.approx(3 / 5)
    assert made.goodput.requests_per_s == pytest.approx(0.2)  # the last one ends after the window
    assert (made.by_label["a"]["goodput_per_s"], made.by_label["b"]["goodput_per_s"]) == (0, pytest.approx(0.2))
    assert made.by_label["a"]["attainment"] == 0.5


def test_a_window_without_a_length_has_no_rates() -> None:
    made = summary(record(0), window_ms=(0, 0))
    assert (made.goodput.requests_per_s, made.offered_per_s, made.output_tokens_per_s) == (0, 0, 0)


def test_a_short_answer_is_a_miss_where_its_length_was_asked_for() -> None:
    short = record(0, planned_output=20)

    def attained(each: Record, **fields: object) -> float:
        return summary(each, config=msgspec.structs.replace(CONFIG, **fields)).goodput.attainment

    assert attained(short) == 0
    assert attained(short, ignore_eos=False) == 1
    assert attained(short, extra_body={"ignore_eos": None}) == 1
    assert attained(short, extra_body={"stop": ["."]}) == 1
    assert attained(short, extra_body={"max_tokens": None, "max_completion_tokens": 11}) == 1
    assert attained(short, extra_body={"max_tokens": None}) == 1
    short.tokens_counted = False  # an event may have had several
    assert attained(short) == 1
    assert summary(short).short_answers == 0


def test_an_answer_in_one_piece_has_no_tpot_and_its_first_token_decides() -> None:
    lump = record(0, e2e_ms=50.0)
    lump.itl_ms = []
    late = msgspec.structs.replace(lump, ttft_ms=1e6, e2e_ms=1e6)
    made = summary(lump, late, record(1_000))
    assert (made.lumps, made.latencies["tpot"].count) == (2, 1)
    assert made.goodput.attainment == pytest.approx(2 / 3)


def test_what_tpot_is_a_time_of() -> None:
    assert summary(record(0)).tpot_basis == "tokens"
    assert summary(record(0), record(1, tokens_counted=False)).tpot_basis == "events"


def test_warmup_and_tail_are_apart_but_their_tokens_count_inside_the_window() -> None:
    """A warm-up answer of 11 tokens, ten of them after the window began."""
    early = record(900, ttft_ms=50, itl_ms=100, phase="warmup")
    late = record(1_950, ttft_ms=60, phase="tail", failure="timeout")
    made = summary(early, record(1_500), late, window_ms=(1_000, 2_000))
    assert (made.warmup, made.measured, made.tail, made.failed_outside) == (1, 1, 1, 1)
    assert made.latencies["ttft"].count == 1
    assert made.output_tokens_per_s == pytest.approx(10 + 11)
    assert made.requests_per_s == pytest.approx(2)
    assert made.offered_per_s == pytest.approx(1)


def test_hits_by_the_servers_account() -> None:
    made = summary(record(0, cached_tokens=48, predicted_cached_tokens=64), record(1, cached_tokens=0), record(2))
    assert made.cache.hit_rate == pytest.approx(48 / 200)
    assert made.cache.predicted_hit_rate == pytest.approx(64 / 100)
    assert summary(record(0)).cache.hit_rate is None


def test_gaps_of_events_with_several_tokens() -> None:
    batched = record(0, itl_ms=30, tokens=3, event_tokens=[1, 3, 1])
    gaps, basis = inter_token_gaps([batched])
    assert (gaps.tolist(), basis) == ([10, 10, 10, 30], "tokens")
    assert inter_token_gaps([record(0)])[1] == "events"


def test_short_answers_and_classes() -> None:
    made = summary(record(0, label="a", planned_output=20), record(1, label="b"), failed(2, "cut"))
    assert made.short_answers == 1
    assert set(made.by_label) == {"", "a", "b"}
    assert made.by_label["a"]["attainment"] == 0
    assert made.by_label["b"]["attainment"] == 1
    assert made.by_label[""]["failed"] == 1


def test_the_generators_own_figures() -> None:
    made = summary(*(record(number, lag_ms=float(number)) for number in range(101)))
    assert made.generator.lag_p99_ms == pytest.approx(99)
    assert (made.generator.lag_max_ms, made.generator.cpu_share_max, made.generator.connections) == (100, 0.25, 3)


def test_over_time() -> None:
    line = summary(record(0, ttft_ms=50, itl_ms=100), record(500), failed(600, "cut")).timeline
    assert line.slot_s == 0.1
    assert line.sent[0] == 1
    assert sum(line.sent) == sum(line.ended) == 3
    assert sum(line.output_tokens) == 22
    assert line.in_flight[-1] == 0
    assert max(line.in_flight) == 2  # at the end of a slot, two of the three have ended
    assert (line.ttft_p50_ms[0], line.ttft_p50_ms[1]) == (50, None)


def test_nothing_measured_is_no_crash() -> None:
    made = summary(failed(0, "connect"))
    assert made.latencies == {}
    assert made.goodput.attainment == 0


def test_t_interval() -> None:
    """Mean 2, deviation 1, three values: 2 ± 4.303 / √3."""
    interval = t_interval([1, 2, 3])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert t_interval([1.0]) is None


def test_bootstrap_covers_what_it_should() -> None:
    """Of 95 % intervals of a mean of independent values, nearly all contain it."""
    rng = np.random.default_rng(0)
    covered = 0
    for number in range(60):
        intervals = block_bootstrap(rng.exponential(10, 400), lambda values: np.asarray([values.mean()]), seed=number)
        assert intervals is not None
        covered += intervals[0].low <= 10 <= intervals[0].high
    assert 50 <= covered <= 60


def test_bootstrap_is_wider_where_neighbours_are_alike() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1_000)
    slow = np.convolve(rng.standard_normal(1_049), np.ones(50) / 50**0.5, "valid")

    def width(values: np.ndarray) -> float:
        intervals = block_bootstrap(values, lambda drawn: np.asarray([drawn.mean()]))
        assert intervals is not None
        return (intervals[0].high - intervals[0].low) / float(values.std())

    assert width(slow) > 2 * width(noise)
    assert block_bootstrap(noise[:10], lambda drawn: drawn[:1]) is None


def test_records_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    records = [record(0), failed(1, "cut")]
    write_records(path, records)
    assert read_records(path) == records
