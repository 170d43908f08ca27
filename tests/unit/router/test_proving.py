"""A worker that joins gets no client's request before a canary has gone through it, unless nobody else is there."""

from __future__ import annotations

from diptych.messages import Role
from router.placement import WorkerView
from router.proving import RETRY_FIRST_S, RETRY_LONGEST_S, Proving

WORKERS = {"p1": Role.PREFILL, "p2": Role.PREFILL, "d1": Role.DECODE, "d2": Role.DECODE}
VIEWS = [WorkerView(worker_id, role, 0, 0, 0, 10) for worker_id, role in WORKERS.items()]


def proving(*proved: str) -> Proving:
    made = Proving()
    for worker_id, role in WORKERS.items():
        made.joined(worker_id, role)
    for worker_id in proved:
        made.proved(worker_id)
    return made


def usable(made: Proving, *through: str) -> set[str]:
    return {view.worker_id for view in made.usable(VIEWS, through)}


def test_before_anybody_has_proved_himself_everybody_is_used() -> None:
    assert usable(proving()) == set(WORKERS)


def test_then_only_the_proven_ones_of_a_role_are() -> None:
    assert usable(proving("d1")) == {"p1", "p2", "d1"}
    assert usable(proving("d1", "p2")) == {"p2", "d1"}
    assert usable(proving(*WORKERS)) == set(WORKERS)


def test_when_the_proven_ones_are_gone_the_others_are_used() -> None:
    made = proving("d1")
    made.left("d1")
    assert {view.worker_id for view in made.usable(VIEWS[3:], ())} == {"d2"}


def test_a_canary_goes_through_whom_it_is_to_prove_and_else_as_usual() -> None:
    made = proving("p1", "d1")
    assert usable(made, "d2") == {"p1", "d2"}
    assert usable(made, "p2", "d2") == {"p2", "d2"}


def test_pairs_are_proved_two_at_a_time_until_one_fails() -> None:
    made, now_s = proving(), 0.0
    assert made.next(WORKERS, now_s) == ("p2", "d2")
    assert made.next(["p1", "p2", "d2"], now_s) == ("p1",)  # d1 is not up yet, the others are under way
    made.failed(("p2", "d2"), "the transfer failed", now_s)
    assert made.reasons["p2"] == "the transfer failed"
    assert made.next(["p2", "d2"], now_s) == ()  # not so soon
    assert len(made.next(["p2", "d2"], now_s + RETRY_FIRST_S)) == 1  # alone, to know whose fault it is


def test_a_worker_that_goes_on_failing_is_asked_ever_later_and_never_given_up() -> None:
    made, now_s, delays = proving("p1", "p2", "d1"), 0.0, []
    for _ in range(10):
        failed_s = now_s
        assert made.next(["d2"], now_s) == ("d2",)
        made.failed(("d2",), "no", now_s)
        while not (made.next(["d2"], now_s)):
            now_s += RETRY_FIRST_S
        made.failed((), "", now_s)
        delays.append(now_s - failed_s)
        made._unproved["d2"].under_way = False
    assert delays[0] == RETRY_FIRST_S
    assert delays[-1] == RETRY_LONGEST_S


def test_who_has_proved_himself_does_not_care_about_a_failure() -> None:
    made = proving("d1")
    made.failed(("d1",), "no", 0.0)
    assert made.is_proved("d1")
    assert len(made) == 3
