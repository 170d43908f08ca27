"""Retries: what may be tried again and where, and that the client never sees a token twice or two answers in one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import BadRequest, DeadlineExceeded, DiptychError, Draining, InternalError, LegFailed, NoCapacity
from diptych.messages import FinishReason, TokenLogprob, Update
from router.attempts import MAX_MOVES, Attempts, Given
from router.placement import Avoid
from router.suspects import SUSPECT_S, Suspects

PAIR = ("p", "d")


def test_a_failed_pair_is_avoided_and_so_is_whoever_refused_or_was_lost() -> None:
    attempts = Attempts(9)
    attempts.failed(LegFailed("transfer"), PAIR, refused_by="", lost=set())
    assert attempts.avoid == Avoid(pairs=frozenset({PAIR}))
    attempts.failed(Draining("later"), ("p2", "d"), refused_by="p2", lost=set())
    attempts.failed(LegFailed("dead"), ("p", "d2"), refused_by="", lost={"d2"})
    assert attempts.avoid.workers == {"p2", "d2"}
    assert attempts.num_failed == 3
    assert attempts.avoid_if_possible == Avoid(frozenset({"p", "p2", "d", "d2"}), attempts.avoid.pairs)
    assert Attempts(9).avoid_if_possible == Avoid()


def test_the_last_attempt_ends_with_its_error() -> None:
    attempts, error = Attempts(2), LegFailed("second")
    attempts.failed(LegFailed("first"), PAIR, "", set())
    with pytest.raises(LegFailed) as caught:
        attempts.failed(error, PAIR, "", set())
    assert caught.value is error


@pytest.mark.parametrize("error", [BadRequest("x"), DeadlineExceeded("x"), NoCapacity("x"), InternalError("x")])
def test_what_another_worker_cannot_mend_is_not_tried_again(error: DiptychError) -> None:
    with pytest.raises(type(error)):
        Attempts(9).failed(error, PAIR, "", set())


def test_a_request_that_kills_its_workers_is_stopped() -> None:
    attempts = Attempts(9)
    attempts.failed(LegFailed("dead"), ("p", "d"), "", {"p", "d"})
    attempts.failed(LegFailed("a transfer"), ("p", "d"), "", set())
    with pytest.raises(InternalError, match="2 times a worker was lost"):
        attempts.failed(LegFailed("another"), ("p2", "d"), "", {"p2"})


def test_to_be_moved_off_workers_that_leave_is_no_failure() -> None:
    attempts = Attempts(2)
    for i in range(MAX_MOVES - 1):
        attempts.failed(Draining("leaving"), (f"p{i}", f"d{i}"), "", {f"p{i}"})  # its connection goes with it
    attempts.failed(LegFailed("a transfer"), ("p", "d"), "", set())  # the first of two
    assert f"p{MAX_MOVES - 2}" in attempts.avoid.workers
    with pytest.raises(LegFailed):
        attempts.failed(LegFailed("another"), ("p", "d"), "", set())


def test_nobody_is_moved_for_ever() -> None:
    attempts = Attempts(2)
    for _ in range(MAX_MOVES - 1):
        attempts.failed(Draining("leaving"), PAIR, "", set())
    with pytest.raises(Draining):
        attempts.failed(Draining("leaving"), PAIR, "", set())


def update(choice: int, position: int, tokens: list[int], last: bool = False) -> Update:
    logprobs = [TokenLogprob(token, -float(token)) for token in tokens]
    return Update("r", choice, position, tokens, FinishReason.LENGTH if last else None, logprobs)


@settings(max_examples=200)
@given(st.data())
def test_the_client_gets_every_token_once(data: st.DataObject) -> None:
    """Attempts break off anywhere, and every one cuts its tokens into updates of its own."""
    answers = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=3))
    state, seen, logprobs = Given(len(answers)), [[] for _ in answers], [[] for _ in answers]
    for attempt in range(4):
        streams = [cut(data, choice, tokens) for choice, tokens in enumerate(answers)]
        while any(streams) and not state.done:
            choice = data.draw(st.sampled_from([i for i, stream in enumerate(streams) if stream]))
            if (news := state.take(streams[choice].pop(0))) is not None:
                assert news.position == len(seen[choice])
                seen[choice] += news.token_ids
                logprobs[choice] += [one.token_id for one in news.logprobs or []]
            if attempt < 3 and data.draw(st.integers(0, 3)) == 0:
                break
    assert state.done
    assert seen == answers == logprobs


def cut(data: st.DataObject, choice: int, tokens: list[int]) -> list[Update]:
    updates, position = [], 0
    while position < len(tokens):
        count = data.draw(st.integers(1, len(tokens) - position))
        part = tokens[position : position + count]
        position += count
        updates.append(update(choice, position - count, part, last=position == len(tokens)))
    return updates


@pytest.mark.parametrize("other", [update(0, 0, [1, 3, 3, 4]), update(0, 0, [1], last=True), update(0, 1, [9])])
def test_another_answer_is_found_out(other: Update) -> None:
    state = Given(1)
    state.take(update(0, 0, [1, 2, 3]))
    with pytest.raises(InternalError, match="other tokens"):
        state.take(other)


def test_suspicion_ends_by_itself_or_with_a_success() -> None:
    suspects = Suspects()
    suspects.suspect(PAIR, now=100.0)
    suspects.suspect(("p", "d2"), now=101.0)
    assert suspects.avoid(100.5).pairs == {PAIR, ("p", "d2")}
    assert suspects.avoid(100.0 + SUSPECT_S).pairs == {("p", "d2")}
    suspects.trust(("p", "d2"))
    assert suspects.avoid(101.0) == Avoid()
