from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.engine.drafts import NgramDrafter
from diptych.engine.interface import EngineRequest, Kind
from diptych.engine.limits import Limits
from diptych.engine.sequence import Group, Sequence, Stage
from diptych.messages import SamplingParams


def drafter(tokens: int = 4, shortest: int = 2, longest: int = 3) -> NgramDrafter:
    return NgramDrafter(Limits(64, 4, 4, 1_000, tokens, shortest, longest))


def sequence(tokens: list[int], max_tokens: int = 100, num_output: int = 1, stop: tuple[int, ...] = ()) -> Sequence:
    cut = len(tokens) - num_output
    sampling = SamplingParams(max_tokens=max_tokens, seed=0, stop_token_ids=stop)
    group = Group(EngineRequest("r", Kind.LOCAL, tuple(tokens[:cut]), sampling, b""), 0, Stage.ACTIVE)
    return Sequence(0, group, list(tokens), [], choice=0, output=tokens[cut:], guess_limit=100)


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 1, 2], [3, 4, 5, 6]),
        ([1, 2, 3, 1, 2], [3, 1, 2, 3]),  # the continuation runs into the end and cycles
        ([7, 7, 7], [7, 7, 7, 7]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),  # the latest place
        ([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], [3, 8, 1, 2]),  # the longer match, though it is older
        ([1, 2, 3, 4], []),
        ([1, 2], []),
        ([5, 1, 6, 1], []),  # one token is too short a match
    ],
)
def test_the_guess_is_what_followed_an_earlier_place(tokens: list[int], guess: list[int]) -> None:
    assert drafter().guess(sequence(tokens), 100) == guess


def test_it_reads_what_was_added_since_the_last_time() -> None:
    drafts, text = drafter(), sequence([1, 2, 3, 4])
    assert drafts.guess(text, 100) == []
    for token in (1, 2, 3):
        text.append(token)
    assert drafts.guess(text, 100) == [4, 1, 2, 3]


def test_no_guess_is_longer_than_the_budget_or_what_is_left_of_the_completion() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert drafter().guess(sequence(text), 2) == [3, 4]
    assert drafter().guess(sequence(text, max_tokens=4, num_output=2), 100) == [3]  # two are missing, one is drawn
    assert drafter().guess(sequence(text, max_tokens=3, num_output=2), 100) == []


def test_a_guess_stops_before_what_would_end_the_choice() -> None:
    assert drafter().guess(sequence([1, 2, 3, 4, 5, 1, 2], stop=(4,)), 100) == [3]


def test_the_next_guess_is_twice_as_long_as_what_was_right() -> None:
    text = sequence([1, 2, 3, 4, 5, 6, 7, 1, 2])
    text.guess_limit = 1
    assert drafter().guess(text, 100) == [3]


@given(st.lists(st.integers(0, 3) | st.sampled_from([256, 1 << 16, 0x01010101]), max_size=60), st.integers(1, 3))
def test_it_finds_what_a_search_token_by_token_finds(tokens: list[int], shortest: int) -> None:
    """Numbers whose bytes look alike, so that a match across token borders would show."""
    tokens = [0, *tokens]
    expected: list[int] = []
    for length in range(3, shortest - 1, -1):
        starts = [i for i in range(len(tokens) - length) if tokens[i : i + length] == tokens[-length:]]
        if starts:
            history = list(tokens)
            for i in range(starts[-1] + length, starts[-1] + length + 4):
                history.append(history[i])
            expected = history[len(tokens) :]
            break
    assert drafter(4, shortest, 3).guess(sequence(tokens), 100) == expected
