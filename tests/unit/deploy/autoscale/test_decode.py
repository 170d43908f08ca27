"""How many decode workers a load takes: blocks and step times, by one sum for more workers and for fewer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.autoscale.decode import batch_within, needed
from deploy.autoscale.signals import DecodeLoad, Need
from deploy.autoscale.step_line import StepLine

START_S, TTFT_MS, TPOT_MS, KV_TARGET = 60.0, 2_000.0, 60.0, 0.8
LOAD = DecodeLoad(
    running=40.0,
    loading=0.0,
    waiting=0.0,
    arriving_per_s=4.0,
    ending_per_s=4.0,
    held_blocks=400.0,
    blocks_per_worker=1_000.0,
    places_per_worker=0.0,
    step_ms=40.0,
    step_base_ms=20.0,
    step_ms_per_sequence=1.0,
    largest_batch=30.0,
)  # of two workers


def need(load: DecodeLoad, serving: int = 2) -> Need:
    return needed(load, serving, START_S, TTFT_MS, TPOT_MS, KV_TARGET)


def test_no_sequences_take_no_worker_and_unknown_blocks_are_not_guessed() -> None:
    assert need(replace(LOAD, running=0.0, held_blocks=0.0)).count == 0
    assert not need(replace(LOAD, blocks_per_worker=0.0)).known


def test_latency_bounds_the_batch() -> None:
    """20 + 1 x batch stays within nine tenths of 60 ms up to 34 sequences."""
    assert batch_within(LOAD, TPOT_MS, KV_TARGET) == pytest.approx(34.0)
    assert need(LOAD).count == 2  # in batches of 34 steps take 54 ms, so there are 54 sequences
    assert need(replace(LOAD, running=20.0, held_blocks=200.0, step_ms=30.0)).count == 2  # 36, one too many for one
    assert need(replace(LOAD, running=18.0, held_blocks=180.0, step_ms=29.0)).count == 1


def test_blocks_bound_the_batch() -> None:
    heavy = replace(LOAD, held_blocks=1_900.0)
    assert batch_within(heavy, TPOT_MS, KV_TARGET) == pytest.approx(0.8 * 1_000 / 47.5)
    assert need(heavy).count == 3
    assert need(heavy).urgent


def test_places_bound_the_batch() -> None:
    assert batch_within(replace(LOAD, places_per_worker=8.0), TPOT_MS, KV_TARGET) == 8.0


def test_a_line_is_not_trusted_far_beyond_what_was_seen() -> None:
    assert batch_within(replace(LOAD, largest_batch=5.0), TPOT_MS, KV_TARGET) == 10.0


def test_slow_steps_do_not_count_twice() -> None:
    """Overloaded, two workers hold three times as many sequences because each takes three times as long."""
    choked = replace(LOAD, running=200.0, held_blocks=2_000.0, step_ms=120.0)
    assert need(choked).count <= 3


def test_what_prefill_holds_up_is_no_reason_for_decode_workers() -> None:
    held_up = replace(LOAD, running=140.0, loading=100.0, held_blocks=1_400.0, waiting=30.0)
    assert need(held_up).count <= need(LOAD).count + 1
    # ... but once prefill has grown, more will come: those are counted already.
    more = replace(held_up, arriving_per_s=8.0)
    assert need(more).count > need(held_up).count


def test_a_limit_that_no_number_of_workers_meets_does_not_take_all_of_them() -> None:
    found = needed(LOAD, 2, START_S, TTFT_MS, 15.0, KV_TARGET)
    assert "more workers cannot help" in found.reason
    assert found.count <= 2


@given(st.floats(1.0, 2.0), st.integers(1, 20))
def test_more_sequences_never_take_fewer_workers(factor: float, serving: int) -> None:
    assert need(LOAD.grown(factor), serving).count >= need(LOAD, serving).count


class TestStepLine:
    def test_it_is_found_from_batches_of_several_sizes_and_kept(self) -> None:
        line = StepLine()
        for batch in (1, 4, 16, 32):
            line.note("d", batch, 20.0 + batch)
        for repeat in range(100):  # a long quiet time says nothing about full batches
            line.note("d", 1, 21.0 + repeat * 1e-6)
        base, slope = line.through(1.0, 21.0)
        assert (base, slope) == (pytest.approx(20.0, abs=0.5), pytest.approx(1.0, abs=0.05))

    def test_it_follows_the_height_of_what_is_measured_now(self) -> None:
        line = StepLine()
        for batch in (1, 8):
            line.note("d", batch, 20.0 + batch)
        base, slope = line.through(8.0, 56.0)  # contexts have become twice as long
        assert base + 8 * slope == pytest.approx(56.0)

    def test_one_size_of_batch_is_no_line(self) -> None:
        line = StepLine()
        assert line.through(0.0, 0.0) == (0.0, 0.0)
        line.note("d", 4, 30.0)
        base, slope = line.through(4.0, 30.0)
        assert base == slope * 4 == 15.0  # half of it, until more is known

    def test_an_idle_worker_that_repeats_itself_says_nothing(self) -> None:
        line = StepLine()
        line.note("d", 8, 28.0)
        for batch in range(1, 8):
            line.note("d", batch, 28.0)  # the last step, shown again with what runs now
        assert line.through(8.0, 28.0) == (14.0, 14.0 / 8)
