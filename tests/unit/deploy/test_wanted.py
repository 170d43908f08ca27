"""What each verb makes of the wanted state, and what it refuses."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.reconcile import Kind
from deploy.wanted import MAXIMUM, MINIMUM, Wanted
from diptych.errors import BadRequest

WANTED = Wanted(counts={Kind.PREFILL: 2, Kind.DECODE: 2, Kind.ROUTER: 1})


def test_scaling_changes_what_is_named() -> None:
    assert WANTED.scaled({Kind.PREFILL: 0}).counts == {Kind.PREFILL: 0, Kind.DECODE: 2, Kind.ROUTER: 1}
    for kind, count in ((Kind.DECODE, 0), (Kind.ROUTER, 0), (Kind.PREFILL, -1), (Kind.PREFILL, 10_000)):
        with pytest.raises(BadRequest, match=f"{kind} is {count}"):
            WANTED.scaled({kind: count})


def test_a_drained_worker_is_replaced_or_not() -> None:
    assert WANTED.without("d1", Kind.DECODE, replace=True).counts[Kind.DECODE] == 2
    smaller = WANTED.without("d1", Kind.DECODE, replace=False)
    assert (smaller.counts[Kind.DECODE], smaller.leaving) == (1, {"d1": None})
    assert smaller.without("d1", Kind.DECODE, replace=False) == smaller  # asked twice
    with pytest.raises(BadRequest, match="scale it up first"):
        smaller.without("d2", Kind.DECODE, replace=False)
    with pytest.raises(BadRequest, match="in no pool"):
        WANTED.without("r1", Kind.ROUTER, replace=True)


def test_a_change_of_role_moves_one_from_pool_to_pool() -> None:
    moved = WANTED.moved("p1", Kind.PREFILL, Kind.DECODE)
    assert moved.counts == {Kind.PREFILL: 1, Kind.DECODE: 3, Kind.ROUTER: 1}
    assert moved.leaving == {"p1": Kind.DECODE}
    assert moved.moved("p1", Kind.PREFILL, Kind.DECODE) == moved
    with pytest.raises(BadRequest, match="being drained already"):
        WANTED.without("p1", Kind.PREFILL, replace=True).moved("p1", Kind.PREFILL, Kind.DECODE)
    with pytest.raises(BadRequest, match="is a decode worker already"):
        WANTED.moved("d1", Kind.DECODE, Kind.DECODE)
    with pytest.raises(BadRequest, match="in no pool"):
        WANTED.moved("d1", Kind.DECODE, Kind.ROUTER)
    full = WANTED.scaled({Kind.DECODE: MAXIMUM})
    with pytest.raises(BadRequest, match=f"decode is {MAXIMUM + 1}"):
        full.moved("p1", Kind.PREFILL, Kind.DECODE)


def test_who_has_ended_is_forgotten() -> None:
    assert WANTED.without("d1", Kind.DECODE, replace=True).ended({"d1"}) == WANTED


def test_nothing_is_changed_on_the_way_down() -> None:
    down = WANTED.nothing()
    for verb in (
        lambda: down.scaled({Kind.PREFILL: 1}),
        lambda: down.without("d1", Kind.DECODE, replace=True),
        lambda: down.moved("p1", Kind.PREFILL, Kind.DECODE),
    ):
        with pytest.raises(BadRequest, match="going down"):
            verb()


@given(st.lists(st.tuples(st.sampled_from(("drain", "drop", "move")), st.integers(0, 9)), max_size=30))
def test_no_sequence_of_verbs_leaves_less_than_the_minimum(verbs: list[tuple[str, int]]) -> None:
    wanted = WANTED
    for verb, number in verbs:
        kind, other = (Kind.PREFILL, Kind.DECODE) if number % 2 else (Kind.DECODE, Kind.PREFILL)
        try:
            if verb == "move":
                wanted = wanted.moved(f"{kind}-{number}", kind, other)
            else:
                wanted = wanted.without(f"{kind}-{number}", kind, replace=verb == "drain")
        except BadRequest:
            pass
        assert all(wanted.counts[kind] >= least for kind, least in MINIMUM.items())
    assert msgspec.json.decode(msgspec.json.encode(wanted), type=Wanted) == wanted
