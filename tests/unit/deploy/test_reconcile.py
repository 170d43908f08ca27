"""Whatever is there, acting on the plan leads to what is wanted; and no plan is hasty."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deploy.reconcile import (
    BACKOFF_FIRST_S,
    BACKOFF_LONGEST_S,
    CRASH_MEMORY_S,
    Forget,
    Kind,
    Observed,
    Start,
    State,
    Stop,
    Tombstone,
    not_before_s,
    reconcile,
)

WANTED = {Kind.PREFILL: 1, Kind.DECODE: 2, Kind.ROUTER: 1}


def observed(kind: Kind, state: State, order: int, proven_dead: bool = False) -> Observed:
    return Observed(f"{kind}-{order}", kind, state, order, proven_dead)


@st.composite
def clusters(draw: st.DrawFn) -> list[Observed]:
    states = draw(st.lists(st.tuples(st.sampled_from(Kind), st.sampled_from(State), st.booleans()), max_size=12))
    return [
        observed(kind, state, order, proven and state is State.DEAD)
        for order, (kind, state, proven) in enumerate(states)
    ]


def test_an_empty_cluster_starts_everything() -> None:
    plan = reconcile(WANTED, [], {}, now_s=0.0)
    assert sorted(action.kind for action in plan.actions if isinstance(action, Start)) == [
        Kind.DECODE,
        Kind.DECODE,
        Kind.PREFILL,
        Kind.ROUTER,
    ]


def test_a_dead_worker_gets_a_tombstone_and_is_replaced_at_once() -> None:
    dead = observed(Kind.PREFILL, State.DEAD, 1, proven_dead=True)
    plan = reconcile({Kind.PREFILL: 1}, [dead], {Kind.PREFILL: [9.9]}, now_s=10.0)
    assert plan.actions == [Tombstone(dead.id), Start(Kind.PREFILL)]


def test_without_proof_there_is_no_tombstone() -> None:
    lost = observed(Kind.DECODE, State.DEAD, 1, proven_dead=False)
    assert reconcile({}, [lost], {}, now_s=0.0).actions == [Forget(lost.id)]


def test_what_still_starts_goes_first_and_then_the_newest() -> None:
    there = [
        observed(Kind.DECODE, State.RUNNING, 1),
        observed(Kind.DECODE, State.RUNNING, 2),
        observed(Kind.DECODE, State.STARTING, 0),
    ]
    plan = reconcile({Kind.DECODE: 1}, there, {}, now_s=0.0)
    assert plan.actions == [Stop("decode-0"), Stop("decode-2")]


def test_a_crash_loop_is_slowed_down_and_says_when_to_look_again() -> None:
    crashes = {Kind.ROUTER: [1.0, 2.0, 3.0]}
    plan = reconcile({Kind.ROUTER: 1}, [], crashes, now_s=3.1)
    assert plan.actions == []
    assert plan.again_at_s == 3.0 + 2 * BACKOFF_FIRST_S
    assert reconcile({Kind.ROUTER: 1}, [], crashes, now_s=plan.again_at_s).actions == [Start(Kind.ROUTER)]


def test_a_crash_loop_of_one_kind_does_not_hold_back_another() -> None:
    plan = reconcile({Kind.ROUTER: 1, Kind.DECODE: 1}, [], {Kind.ROUTER: [0.0] * 9}, now_s=0.1)
    assert plan.actions == [Start(Kind.DECODE)]


@given(st.lists(st.floats(0.0, 1_000.0), max_size=40), st.floats(1_000.0, 2_000.0))
def test_back_off_is_bounded_and_ends(crashed_at_s: list[float], now_s: float) -> None:
    at_s = not_before_s(crashed_at_s, now_s)
    assert now_s <= at_s <= max([now_s, *(at + BACKOFF_LONGEST_S for at in crashed_at_s)])
    assert not_before_s(crashed_at_s, now_s + CRASH_MEMORY_S) <= now_s + CRASH_MEMORY_S


@given(clusters(), st.dictionaries(st.sampled_from(Kind), st.integers(0, 3)))
def test_acting_on_plans_ends_with_what_is_wanted(there: list[Observed], wanted: dict[Kind, int]) -> None:
    orders = iter(range(100, 200))
    for _ in range(3):
        plan = reconcile(wanted, there, {}, now_s=0.0)
        ids = [action.id for action in plan.actions if not isinstance(action, Start)]
        assert len(ids) == len(set(ids)), "two actions for one process"
        for action in plan.actions:
            there = apply(action, there, next(orders))
        there = [replace(p, state=State.DEAD) if p.state is State.STOPPING else p for p in there]
    assert reconcile(wanted, there, {}, now_s=0.0).actions == []
    for kind in Kind:
        assert sum(p.kind is kind for p in there) == wanted.get(kind, 0)


def apply(action: Start | Stop | Tombstone | Forget, there: list[Observed], order: int) -> list[Observed]:
    match action:
        case Start(kind=kind):
            return [*there, observed(kind, State.RUNNING, order)]
        case Stop(id=id):
            assert next(p for p in there if p.id == id).state in (State.STARTING, State.RUNNING)
            return [replace(p, state=State.STOPPING) if p.id == id else p for p in there]
        case Tombstone(id=id) | Forget(id=id):
            gone = next(p for p in there if p.id == id)
            assert gone.state is State.DEAD
            assert gone.proven_dead == isinstance(action, Tombstone)
            return [p for p in there if p.id != id]
