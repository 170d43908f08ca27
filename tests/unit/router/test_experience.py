from __future__ import annotations

import pytest

from router.experience import FIRST_ERROR, FIRST_TOKENS, MAX_ERROR, MIN_ERROR, Experience
from router.requests import Report


def report(expected_ms: float, actual_ms: float, num_tokens: int = 10) -> Report:
    marks = {"placed": 1.0, "first_token": 1.0 + actual_ms / 1e3}
    return Report(expected_ms=expected_ms, num_tokens=num_tokens, marks=marks)


def test_learns_how_long_completions_are_and_never_more_than_was_asked_for() -> None:
    experience = Experience()
    assert experience.learnt(10_000).expected_tokens == FIRST_TOKENS
    for _ in range(300):
        experience.ended(report(1.0, 1.0, num_tokens=60), num_choices=2)
    assert experience.learnt(10_000).expected_tokens == pytest.approx(30.0, abs=0.1)
    assert experience.learnt(8).expected_tokens == 8


@pytest.mark.parametrize(
    ("expected_ms", "actual_ms", "error"),
    [(100.0, 80.0, 0.2), (80.0, 100.0, 0.2), (100.0, 100.0, MIN_ERROR), (1.0, 1_000.0, MAX_ERROR)],
)
def test_learns_how_wrong_predictions_are_within_bounds(expected_ms: float, actual_ms: float, error: float) -> None:
    experience = Experience()
    for _ in range(300):
        experience.ended(report(expected_ms, actual_ms), 1)
    assert experience.error == pytest.approx(error, abs=1e-3)


def test_a_first_token_of_an_earlier_attempt_says_nothing_about_the_last_placement() -> None:
    experience = Experience()
    for _ in range(50):
        experience.ended(Report(expected_ms=5.0, marks={"placed": 2.0, "first_token": 1.0}), 1)
        experience.ended(Report(expected_ms=5.0, marks={"placed": 2.0}), 1)
    assert experience.error == FIRST_ERROR
