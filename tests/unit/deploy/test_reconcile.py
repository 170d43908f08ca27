"""Whatever is there, acting on the plan leads to what is wanted; and no plan is hasty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.reconcile import (
    BACKOFF_FIRST_S,
    BACKOFF_LONGEST_S,
    CRASH_MEMORY_S,
    Action,
    Forget,
    Health,
    Kill,
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


def observed(kind: Kind, state: State, order: int, proven_dead: bool = False, **more: object) -> Observed:
    return Observed(f"{kind}-{order}", kind, state, order, proven_dead, **more)  # type: ignore[arg-type]


def leaving(kind: Kind, order: int, becomes: Kind | None = None, state: State = State.RUNNING) -> Observed:
    return observed(kind, state, order, leaving=True, becomes=becomes)


def running(kind: Kind, order: int) -> Observed:
    return observed(kind, State.RUNNING, order)


def plan(
    wanted: Mapping[Kind, int], there: list[Observed], placeable: Mapping[Kind, int] | None = None, surge: bool = True
) -> list[object]:
    return list(reconcile(wanted, there, {}, 0.0, placeable, surge).actions)


@st.composite
def clusters(draw: st.DrawFn) -> list[Observed]:
    workers = st.sampled_from((Kind.PREFILL, Kind.DECODE))
    drawn = st.tuples(
        st.sampled_from(Kind), st.sampled_from(State), st.booleans(), st.booleans(), st.none() | workers, st.booleans()
    )
    return [
        observed(
            kind,
            state,
            order,
            proven and state is State.DEAD,
            leaving=going,
            becomes=becomes if going and becomes is not kind else None,
            health=Health.LOST if lost else Health.OK,
        )
        for order, (kind, state, proven, going, becomes, lost) in enumerate(draw(st.lists(drawn, max_size=12)))
    ]


def test_an_empty_cluster_starts_everything() -> None:
    actions = plan(WANTED, [])
    assert sorted(action.kind for action in actions if isinstance(action, Start)) == [
        Kind.DECODE,
        Kind.DECODE,
        Kind.PREFILL,
        Kind.ROUTER,
    ]


def test_a_dead_worker_gets_a_tombstone_and_is_replaced_at_once() -> None:
    dead = observed(Kind.PREFILL, State.DEAD, 1, proven_dead=True)
    actions = reconcile({Kind.PREFILL: 1}, [dead], {Kind.PREFILL: [9.9]}, now_s=10.0).actions
    assert actions == [Tombstone(dead.id), Start(Kind.PREFILL)]


def test_without_proof_there_is_no_tombstone() -> None:
    lost = observed(Kind.DECODE, State.DEAD, 1, proven_dead=False)
    assert reconcile({}, [lost], {}, now_s=0.0).actions == [Forget(lost.id)]


def test_what_still_starts_goes_first_and_then_the_newest() -> None:
    there = [
        observed(Kind.DECODE, State.RUNNING, 1),
        observed(Kind.DECODE, State.RUNNING, 2),
        observed(Kind.DECODE, State.STARTING, 0),
    ]
    assert plan({Kind.DECODE: 1}, there) == [Stop("decode-0"), Stop("decode-2")]


def test_who_gets_nowhere_is_killed_and_replaced_at_the_same_time() -> None:
    stuck = observed(Kind.DECODE, State.RUNNING, 1, health=Health.LOST)
    assert plan({Kind.DECODE: 1}, [stuck]) == [Kill("decode-1"), Start(Kind.DECODE)]
    assert plan({Kind.DECODE: 1}, [replace(stuck, health=Health.SUSPECT)]) == []


def test_a_pool_that_shrinks_keeps_who_is_well() -> None:
    old, new = observed(Kind.DECODE, State.RUNNING, 1, health=Health.SUSPECT), running(Kind.DECODE, 2)
    assert plan({Kind.DECODE: 1}, [old, new]) == [Stop("decode-1")]


def test_a_router_is_followed_when_its_ports_are_free() -> None:
    """Who starts before gets other ports, and clients know no others."""
    stuck = observed(Kind.ROUTER, State.RUNNING, 1, health=Health.LOST)
    assert plan({Kind.ROUTER: 1}, [stuck]) == [Kill("router-1")]
    assert plan({Kind.ROUTER: 3}, [stuck]) == [Kill("router-1"), Start(Kind.ROUTER), Start(Kind.ROUTER)]
    ending = observed(Kind.ROUTER, State.STOPPING, 2)
    assert plan({Kind.ROUTER: 2}, [running(Kind.ROUTER, 1), ending]) == []
    dead = replace(stuck, state=State.DEAD)
    assert plan({Kind.ROUTER: 1}, [dead]) == [Forget("router-1"), Start(Kind.ROUTER)]


def test_a_drained_worker_leaves_when_every_router_would_use_its_successor() -> None:
    there = [leaving(Kind.DECODE, 1)]
    assert plan({Kind.DECODE: 1}, there, {Kind.DECODE: 1}) == [Start(Kind.DECODE)]
    there.append(observed(Kind.DECODE, State.STARTING, 2))
    assert plan({Kind.DECODE: 1}, there, {Kind.DECODE: 1}) == []
    there[1] = running(Kind.DECODE, 2)
    assert plan({Kind.DECODE: 1}, there, {Kind.DECODE: 1}) == []  # the routers have not seen it yet
    assert plan({Kind.DECODE: 1}, there, {}) == []  # nobody knows
    assert plan({Kind.DECODE: 1}, there, {Kind.DECODE: 2}) == [Stop("decode-1")]


def test_no_more_workers_leave_at_once_than_can_be_spared() -> None:
    there = [leaving(Kind.DECODE, 1), leaving(Kind.DECODE, 2), running(Kind.DECODE, 3), running(Kind.DECODE, 4)]
    assert plan({Kind.DECODE: 2}, there, {Kind.DECODE: 3}) == [Stop("decode-1")]
    assert plan({Kind.DECODE: 2}, there, {Kind.DECODE: 4}) == [Stop("decode-1"), Stop("decode-2")]


def test_without_room_for_both_the_successor_starts_when_the_drained_one_is_gone() -> None:
    wanted, there = {Kind.DECODE: 1}, [leaving(Kind.DECODE, 1)]
    assert plan(wanted, there, surge=False) == [Stop("decode-1")]
    assert plan(wanted, [leaving(Kind.DECODE, 1, state=State.STOPPING)], surge=False) == []
    assert plan(wanted, [], surge=False) == [Start(Kind.DECODE)]


def test_a_change_of_role_is_a_drain_and_then_a_start() -> None:
    wanted = {Kind.PREFILL: 1, Kind.DECODE: 2}
    there = [leaving(Kind.PREFILL, 1, Kind.DECODE), running(Kind.PREFILL, 2), running(Kind.DECODE, 3)]
    assert plan(wanted, there, {Kind.PREFILL: 2, Kind.DECODE: 1}) == [Stop("prefill-1")]
    there[0] = leaving(Kind.PREFILL, 1, Kind.DECODE, State.STOPPING)
    assert plan(wanted, there, {Kind.PREFILL: 1, Kind.DECODE: 1}) == []
    assert plan(wanted, there[1:], {Kind.PREFILL: 1, Kind.DECODE: 1}) == [Start(Kind.DECODE)]


@pytest.mark.parametrize("surge", [True, False])
def test_two_that_change_places_do_not_wait_for_each_other(surge: bool) -> None:
    there = [leaving(Kind.PREFILL, 1, Kind.DECODE), leaving(Kind.DECODE, 2, Kind.PREFILL)]
    assert settle({Kind.PREFILL: 1, Kind.DECODE: 1}, there, surge)


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


@given(clusters(), st.dictionaries(st.sampled_from(Kind), st.integers(0, 3)), st.booleans())
def test_acting_on_plans_ends_with_what_is_wanted(there: list[Observed], wanted: dict[Kind, int], surge: bool) -> None:
    for kind in Kind:
        assert sum(p.kind is kind for p in settle(wanted, there, surge)) == wanted.get(kind, 0)


LATER = {State.STOPPING: State.DEAD, State.STARTING: State.RUNNING}


def settle(wanted: dict[Kind, int], there: list[Observed], surge: bool) -> list[Observed]:
    """Act on plans until there is nothing to do. What has been told to stop ends, what is started runs."""
    orders = iter(range(100, 300))
    for _ in range(8):
        placeable = {kind: sum(p.kind is kind and p.state is State.RUNNING for p in there) for kind in Kind}
        actions = reconcile(wanted, there, {}, 0.0, placeable, surge).actions
        ids = [action.id for action in actions if not isinstance(action, Start)]
        assert len(ids) == len(set(ids)), "two actions for one process"
        there = [replace(p, state=LATER.get(p.state, p.state)) for p in there]
        for action in actions:
            there = apply(action, there, next(orders))
    assert actions == []
    return there


def apply(action: Action, there: list[Observed], order: int) -> list[Observed]:
    match action:
        case Start(kind=kind):
            return [*there, observed(kind, State.RUNNING, order)]
        case Stop(id=id):
            assert next(p for p in there if p.id == id).state in (State.STARTING, State.RUNNING)
            return [replace(p, state=State.STOPPING) if p.id == id else p for p in there]
        case Kill(id=id):
            return [replace(p, state=State.DEAD) if p.id == id else p for p in there]
        case Tombstone(id=id) | Forget(id=id):
            gone = next(p for p in there if p.id == id)
            assert gone.state is State.DEAD
            assert gone.proven_dead == isinstance(action, Tombstone)
            return [p for p in there if p.id != id]
