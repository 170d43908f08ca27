from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.step_fit import StepFit


def test_finds_the_line_that_step_times_lie_on() -> None:
    fit = StepFit()
    for batch in (1, 16, 4, 9, 30):
        fit.note(batch, 12.0 + 0.5 * batch)
    assert fit.base_ms == pytest.approx(12.0)
    assert fit.ms_per_sequence == pytest.approx(0.5)


def test_takes_a_step_as_its_sequences_until_there_is_a_line() -> None:
    fit = StepFit()
    assert (fit.base_ms, fit.ms_per_sequence) == (0.0, 0.0)
    fit.note(8, 16.0)
    fit.note(8, 16.1)
    assert fit.base_ms == pytest.approx(0.0)
    assert fit.ms_per_sequence == pytest.approx(2.0, rel=0.01)


def test_an_idle_worker_s_last_step_says_nothing_about_an_empty_batch() -> None:
    fit = StepFit()
    fit.note(16, 137.0)
    fit.note(0, 137.0)
    fit.note(1, 137.0)  # the same figure shown again while another batch begins
    assert fit.ms_per_sequence == pytest.approx(137.0 / 16)


def test_what_was_long_ago_is_forgotten() -> None:
    fit = StepFit()
    for _ in range(5):
        for batch in (1, 9):
            fit.note(batch, 50.0 + batch)
    for i in range(200):
        fit.note(1 + i % 9, 10.0 + 2.0 * (1 + i % 9))
    assert fit.base_ms == pytest.approx(10.0, abs=0.5)
    assert fit.ms_per_sequence == pytest.approx(2.0, abs=0.1)


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0.0, 1e4)), max_size=40))
def test_never_below_zero(reports: list[tuple[int, float]]) -> None:
    fit = StepFit()
    for batch, step_ms in reports:
        fit.note(batch, step_ms)
    assert fit.ms_per_sequence >= 0.0
    assert fit.base_ms >= -1e-6 * max((ms for _, ms in reports), default=1.0)


def test_a_sequence_always_costs_something() -> None:
    """Reports that fall as the batch grows: noise, on a machine that was busier before."""
    fit = StepFit()
    for num_running, step_ms in ((1, 9.0), (4, 7.0), (8, 5.0), (2, 8.5)):
        fit.note(num_running, step_ms)
    assert fit.ms_per_sequence > 0.05
    assert fit.base_ms > 0
