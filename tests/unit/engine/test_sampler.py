from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from diptych.engine.interface import Draw, Drawn
from diptych.engine.sampler import adjust, draw_all, draw_token, log_softmax, truncate, uniform
from diptych.errors import InternalError
from diptych.messages import SamplingParams

VOCAB = 40


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 100, "seed": 1} | fields))


def draw(
    position: int = 0, choice: int = 0, prompt: list[int] | None = None, output: list[int] | None = None, **fields: Any
) -> Draw:
    return Draw(choice, position, params(**fields), prompt or [], output or [])


def logits_of(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def frequencies(logits: np.ndarray, count: int = 4_000, **fields: Any) -> np.ndarray:
    """How often each token is drawn over many positions."""
    drawn = [draw_token(logits, draw(position, **fields)) for position in range(count)]
    return np.bincount(drawn, minlength=len(logits)) / count


logits_arrays = npst.arrays(np.float32, VOCAB, elements=st.floats(-30, 30, width=32))
token_ids = st.integers(0, VOCAB - 1)
draws = st.builds(
    Draw,
    choice=st.integers(0, 3),
    position=st.integers(0, 50),
    sampling=st.builds(
        SamplingParams,
        max_tokens=st.just(100),
        seed=st.integers(-(2**63), 2**64 - 1),
        temperature=st.sampled_from([0.0, 1e-9, 0.3, 1.0, 2.0]),
        top_p=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
        top_k=st.sampled_from([0, 1, 5, VOCAB, 1_000]),
        min_p=st.sampled_from([0.0, 0.1, 1.0]),
        repetition_penalty=st.sampled_from([0.5, 1.0, 1.5]),
        frequency_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
        presence_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
        logit_bias=st.dictionaries(token_ids, st.floats(-100, 100), max_size=3),
        stop_token_ids=st.lists(token_ids, max_size=3).map(tuple),
        min_tokens=st.sampled_from([0, 10]),
        logprobs=st.sampled_from([None, 0, 3, 1_000]),
    ),
    prompt=st.lists(token_ids, max_size=8),
    output=st.lists(token_ids, max_size=8),
)


@settings(max_examples=200, deadline=None)
@given(logits_arrays, draws, st.lists(draws, max_size=4))
def test_a_draw_does_not_depend_on_others_nor_change_the_logits(
    logits: np.ndarray, one: Draw, others: list[Draw]
) -> None:
    before = logits.copy()
    (alone,) = draw_all(logits, [one])
    among = draw_all(logits, [*others[:2], one, *others[2:]])[len(others[:2])]
    assert among == alone
    np.testing.assert_array_equal(logits, before)


@settings(max_examples=200, deadline=None)
@given(logits_arrays, draws)
def test_every_draw_is_a_token_that_may_be_drawn(logits: np.ndarray, one: Draw) -> None:
    token_id = draw_token(logits, one)
    assert 0 <= token_id < VOCAB
    if one.position < one.sampling.min_tokens:
        assert token_id not in one.sampling.stop_token_ids
    adjusted = adjust(logits, one)
    if one.sampling.temperature == 0:
        assert token_id == adjusted.argmax()
    else:
        kept = truncate(adjusted, one.sampling)
        assert kept[token_id] > 0
        assert kept.max() == 1
        assert adjusted[kept.argmax()] == pytest.approx(adjusted.max(), abs=1e-6)  # closer ones are equally likely
        assert one.sampling.top_k != 1 or token_id == kept.argmax()
        assert one.sampling.top_k == 0 or np.count_nonzero(kept) <= one.sampling.top_k


def test_greedy_takes_the_largest_and_of_equals_the_first() -> None:
    assert draw_token(logits_of(1, 3, 3, 2), draw(temperature=0)) == 1


def test_the_random_number_depends_on_seed_choice_and_position() -> None:
    keys = list(product((0, 1, -1, 2**64), (0, 1), range(50)))
    numbers = {uniform(*key) for key in keys}
    assert len(numbers) == len(keys)
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(7, 1, 2) == 0.7054028022218772  # a change here breaks replay between versions


def test_the_random_number_is_uniform() -> None:
    counts, _ = np.histogram([uniform(3, 0, position) for position in range(20_000)], bins=20, range=(0, 1))
    expected = 1_000
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities).astype(np.float32) + 7
    np.testing.assert_allclose(frequencies(logits), probabilities, atol=0.025)
    hot = probabilities**0.5 / (probabilities**0.5).sum()
    np.testing.assert_allclose(frequencies(logits, temperature=2.0), hot, atol=0.025)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.8}, [0, 1]),
        ({"top_p": 0.0}, [0]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"min_p": 0.25}, [0, 1, 2]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 2, "top_p": 0.99}, [0, 1]),
        ({"top_k": 2, "top_p": 0.6}, [0]),  # top_p counts what top_k left: 0.5 / 0.8 is over 0.6
        ({}, [0, 1, 2, 3]),
    ],
)
def test_truncation_keeps_the_right_tokens(fields: dict[str, Any], kept: list[int]) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    assert np.flatnonzero(truncate(logits, params(**fields))).tolist() == kept


def test_top_k_keeps_exactly_k_of_equals() -> None:
    assert np.flatnonzero(truncate(logits_of(1, 2, 2, 2), params(top_k=2))).tolist() == [1, 2]


@settings(deadline=None)
@given(logits_arrays, st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: np.ndarray, top_p: float) -> None:
    everything = truncate(logits, params()).astype(np.float64)
    everything /= everything.sum()
    kept = np.flatnonzero(truncate(logits, params(top_p=top_p)))
    assert everything[kept].sum() >= top_p - 1e-9
    assert everything[kept].sum() - everything[kept].min() < top_p + 1e-9


def test_penalties() -> None:
    logits = logits_of(2, -2, 4, 4, 1)
    penalised = adjust(logits, draw(prompt=[0, 1], output=[2, 2, 3], repetition_penalty=2.0))
    np.testing.assert_allclose(penalised, [1, -4, 2, 2, 1])
    penalised = adjust(logits, draw(prompt=[0, 1], output=[2, 2, 3], frequency_penalty=0.5, presence_penalty=0.25))
    np.testing.assert_allclose(penalised, [2, -2, 4 - 1.25, 4 - 0.75, 1])


def test_logit_bias_and_min_tokens() -> None:
    logits = logits_of(5, 4, 3)
    assert draw_token(logits, draw(temperature=0, logit_bias={2: 3.0})) == 2
    early = {"temperature": 0, "stop_token_ids": (0,), "min_tokens": 2}
    assert [draw_token(logits, draw(position, **early)) for position in range(4)] == [1, 1, 0, 0]


def test_logprobs_are_the_models_own() -> None:
    logits = logits_of(1, 2, 3, 0)
    changed = draw(logprobs=2, temperature=0.1, logit_bias={3: 100.0}, top_k=1, repetition_penalty=5.0, prompt=[2])
    (drawn,) = draw_all(logits, [changed])
    expected = logits - np.log(np.exp(logits).sum())
    assert drawn.token_id == 3
    assert drawn.logprob is not None
    assert drawn.logprob.token_id == 3
    assert drawn.logprob.logprob == pytest.approx(expected[3])
    assert [token_id for token_id, _ in drawn.logprob.top] == [2, 1]
    assert [logprob for _, logprob in drawn.logprob.top] == pytest.approx([expected[2], expected[1]])


def test_logprobs_zero_reports_only_the_drawn_token_and_none_nothing() -> None:
    first, second = draw_all(logits_of(1, 2), [draw(logprobs=0), draw()])
    assert first.logprob is not None
    assert first.logprob.top == []
    assert second == Drawn(0, first.token_id, None)


def test_log_softmax_survives_large_logits() -> None:
    np.testing.assert_allclose(log_softmax(logits_of(1e4, 1e4)), np.log([0.5, 0.5]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_logits_without_a_distribution(bad: float) -> None:
    with pytest.raises(InternalError, match="not finite"):
        draw_all(logits_of(1, bad, 2), [draw()])
