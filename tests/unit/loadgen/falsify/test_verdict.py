"""From differences to words: three regions, and when nothing may be said."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from falsify_cases import a_block, a_design

from loadgen.falsify.block import Block
from loadgen.falsify.design import Design
from loadgen.falsify.report import design_text, headline, page, verdict_text
from loadgen.falsify.verdict import EXIT_STATUS, Answer, judge

RESULTS = Path(__file__).parents[4] / "benchmarks" / "results"


def blocks_of(differences: list[float], measured: int = 200) -> list:
    return [a_block(number, 0.5 + each, 0.5, measured=measured) for number, each in enumerate(differences)]


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
    assert judge(design, blocks_of([-0.01, -0.02, -0.01, -0.02] * 2)).answer is Answer.DOES_NOT_PAY
    assert judge(design, blocks_of([0.0] * 8)).answer is Answer.CANNOT_TELL  # any gain at all would count


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


@pytest.mark.parametrize(("measured", "answer"), [(40, Answer.DOES_NOT_PAY), (10, Answer.CANNOT_TELL)])
def test_a_ceiling_is_named(measured: int, answer: Answer) -> None:
    verdict = judge(a_design(), [a_block(number, 1.0, 1.0, measured=measured) for number in range(8)])
    assert verdict.answer is answer
    assert "nothing to gain" in verdict.why


@pytest.mark.parametrize(("measured", "answer"), [(40, Answer.DOES_NOT_PAY), (10, Answer.CANNOT_TELL)])
def test_where_both_arms_failed_it_says_so_first(measured: int, answer: Answer) -> None:
    blocks = [a_block(number, 0.0, 0.0, measured=measured) for number in range(8)]
    verdict = judge(a_design(), blocks)
    assert verdict.answer is answer
    assert "both arms failed: no request of either met the limits" in verdict.why
    for text in (headline(a_design(), blocks, verdict), page(a_design(), blocks, verdict)):
        assert "BOTH ARMS FAILED" in text


def test_blocks_that_agree_by_chance_are_not_certain() -> None:
    """Four blocks of ten requests that all say 0, or all the same: one request more would have said something else."""
    for each in (0.0, 0.1):
        verdict = judge(a_design(blocks=4), blocks_of([each] * 4, measured=10))
        assert verdict.answer is Answer.CANNOT_TELL
        assert verdict.effect is not None
        assert verdict.effect.high - verdict.effect.low == pytest.approx(2 * 3.182 * 2**0.5 / 10 / 2)
        assert "one request" in verdict.why
    certain = judge(a_design(blocks=4), [a_block(number, 1.0, 0.0, measured=10) for number in range(4)])
    assert certain.answer is Answer.PAYS
    assert certain.effect is not None
    assert certain.effect.high == 1.0  # no difference of shares is greater


def false_verdicts(blocks: int, requests: int, truth: tuple[float, float], least: float, trials: int = 1_000) -> float:
    """Share of trials that say the opposite of the truth; where every request is on its own."""
    rng = np.random.default_rng(0)
    shares = [rng.binomial(requests, share, (trials, blocks)) / requests for share in truth]
    design, wrong = a_design(blocks=blocks, minimal_effect=least), 0
    opposite = Answer.DOES_NOT_PAY if truth[0] - truth[1] >= least - 1e-9 else Answer.PAYS
    for ours, theirs in zip(*shares, strict=True):
        pairs = enumerate(zip(ours.tolist(), theirs.tolist(), strict=True))
        made = [a_block(number, one, other, measured=requests) for number, (one, other) in pairs]
        wrong += judge(design, made).answer is opposite
    return wrong / trials


@pytest.mark.parametrize(("blocks", "requests"), [(4, 10), (8, 10), (8, 40)])
@pytest.mark.parametrize(
    ("truth", "least"),
    [
        ((0.95, 0.95), 0.05),  # no difference
        ((0.5, 0.5), 0.05),
        ((0.0, 0.0), 0.05),
        ((1.0, 0.95), 0.05),  # just worth having; four blocks of ten requests see nothing of it in 12 % of trials
        ((1.0, 0.98), 0.02),  # in 45 %
        ((0.55, 0.5), 0.05),
    ],
)
def test_false_verdicts_are_rare_however_few_requests_there_are(
    blocks: int, requests: int, truth: tuple[float, float], least: float
) -> None:
    assert false_verdicts(blocks, requests, truth, least) <= 0.05


def test_the_plan_says_what_so_many_requests_can_tell_apart() -> None:
    assert "at best ±5.9 points" in design_text(a_design())  # 8 blocks of 20: Student's t of 7, one request in 20
    assert "less than 5 points cannot be told" in design_text(a_design())
    assert "cannot be told" not in design_text(a_design(minimal_effect=0.1))


@pytest.mark.parametrize("name", ["disaggregation", "cache-aware"])
def test_verdicts_that_were_published_are_read_and_hold(name: str) -> None:
    """Of an older schema: the same hash, the same interval, and the same verdict under today's rule."""
    found = json.loads((RESULTS / f"falsify-{name}-20261121.json").read_text())
    design = msgspec.convert(found["design"], Design)
    assert design.digest == found["sha256"]
    blocks = [msgspec.convert(each, Block) for each in found["blocks"]]
    verdict = judge(design, blocks)
    assert verdict.answer.value == found["verdict"] == "pays"
    assert msgspec.to_builtins(verdict.effect) == pytest.approx(found["effect"])
    assert found["sha256"] in verdict_text(design, blocks, verdict)
    assert "prefill worker for" not in verdict_text(design, blocks, verdict)  # which was not kept then


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
