"""From differences to words: three regions, and when nothing may be said."""

from __future__ import annotations

import random

import pytest
from falsify_cases import a_block, a_design

from loadgen.falsify.verdict import EXIT_STATUS, Answer, judge


def blocks_of(differences: list[float]) -> list:
    return [a_block(number, 0.5 + each, 0.5) for number, each in enumerate(differences)]


@pytest.mark.parametrize(
    ("differences", "answer"),
    [
        ([0.20, 0.22, 0.19, 0.21, 0.20, 0.23, 0.18, 0.2], Answer.PAYS),
        ([0.01, 0.02, 0.00, 0.01, 0.03, 0.01, 0.02, 0.0], Answer.DOES_NOT_PAY),  # better, and not by enough
        ([-0.2, -0.1, -0.3, -0.2, -0.2, -0.1, -0.3, -0.2], Answer.DOES_NOT_PAY),
        ([0.3, -0.2, 0.25, -0.1, 0.2, 0.1, -0.2, 0.3], Answer.CANNOT_TELL),
        ([0.05, 0.06, 0.05, 0.07, 0.04, 0.06, 0.05, 0.05], Answer.CANNOT_TELL),  # around the minimal effect itself
        ([0.0] * 8, Answer.DOES_NOT_PAY),
    ],
)
def test_the_interval_against_the_minimal_effect(differences: list[float], answer: Answer) -> None:
    verdict = judge(a_design(), blocks_of(differences))
    assert verdict.answer is answer
    assert verdict.effect is not None
    assert verdict.effect.mean == pytest.approx(sum(differences) / 8)


def test_without_a_minimal_effect_any_gain_that_is_sure_pays_and_none_does_not() -> None:
    design = a_design(minimal_effect=0.0)
    assert judge(design, blocks_of([0.01, 0.02, 0.01, 0.02] * 2)).answer is Answer.PAYS
    assert judge(design, blocks_of([0.0] * 8)).answer is Answer.DOES_NOT_PAY


def test_a_verdict_needs_all_blocks_run_and_enough_of_them_usable() -> None:
    sure = [0.2, 0.21] * 4
    assert judge(a_design(), blocks_of(sure)[:7]).answer is Answer.CANNOT_TELL
    assert judge(a_design(), blocks_of(sure), stopped=True).answer is Answer.CANNOT_TELL
    late = [
        a_block(number, 0.7, 0.5 - number / 1e3, invalid="the generator fell behind" if number < 3 else "")
        for number in range(8)
    ]
    assert judge(a_design(), late).answer is Answer.CANNOT_TELL
    assert judge(a_design(), late).blocks_left_out == 3
    two_late = [each if number != 0 else a_block(0, 0.7, 0.5) for number, each in enumerate(late)]
    assert judge(a_design(), two_late).answer is Answer.PAYS
    assert judge(a_design(), []).answer is Answer.CANNOT_TELL


def test_a_ceiling_is_named() -> None:
    verdict = judge(a_design(), [a_block(number, 1.0, 1.0) for number in range(8)])
    assert verdict.answer is Answer.DOES_NOT_PAY
    assert "nothing to gain" in verdict.why


def test_errors_of_the_first_kind_are_as_rare_as_said() -> None:
    """A true effect at the minimal effect exactly: "pays" and "does not pay" are both wrong, 2.5 % each."""
    rng, said = random.Random(0), []
    for _ in range(600):
        differences = [min(0.5, max(-0.5, rng.gauss(0.05, 0.1))) for _ in range(8)]
        said.append(judge(a_design(), blocks_of(differences)).answer)
    assert said.count(Answer.PAYS) / 600 < 0.045
    assert said.count(Answer.DOES_NOT_PAY) / 600 < 0.045


def test_exit_statuses_are_told_apart_from_failures() -> None:
    assert EXIT_STATUS[Answer.PAYS] == 0
    assert len(set(EXIT_STATUS.values())) == 3
    assert not {1, 2, 130} & set(EXIT_STATUS.values())
