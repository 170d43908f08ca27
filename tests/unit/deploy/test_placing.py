"""Replicas are spread or packed, and a node has to have the labels and the room."""

from __future__ import annotations

from deploy.placing import Needs, Node, Placed, Strategy, choose
from deploy.reconcile import Kind

NODES = [Node("a", {"GPU": 2}, {"zone": "x"}), Node("b", {"GPU": 1}, {"zone": "y"}), Node("c")]


def needs(strategy: Strategy = "spread", labels: dict[str, str] | None = None, **resources: float) -> Needs:
    return Needs(Kind.DECODE, resources, labels or {}, strategy)


def fill(wish: Needs, count: int) -> list[str]:
    placed: list[Placed] = []
    for _ in range(count):
        placed.append(Placed(wish.kind, choose(wish, NODES, placed), wish.resources))
    return [process.node_id for process in placed]


def test_replicas_of_a_pool_are_spread_over_nodes() -> None:
    assert sorted(fill(needs(), 6)) == ["a", "a", "b", "b", "c", "c"]


def test_replicas_are_spread_whatever_else_runs_there() -> None:
    placed = [Placed(Kind.DECODE, "a"), Placed(Kind.PREFILL, "b"), Placed(Kind.PREFILL, "b")]
    assert choose(needs(), NODES[:2], placed) == "b"


def test_packing_follows_what_is_there() -> None:
    assert choose(needs("pack"), NODES, [Placed(Kind.PREFILL, "b")]) == "b"
    assert fill(needs("pack"), 3) == ["a", "a", "a"]


def test_a_node_has_room_for_so_many() -> None:
    assert fill(needs(GPU=1.0), 4) == ["a", "b", "a", ""]  # for the last one Ray has to find, or wait for, a place
    assert choose(needs(slot=1.0), NODES, []) == ""


def test_a_node_has_all_the_labels() -> None:
    assert fill(needs(labels={"zone": "y"}), 2) == ["b", "b"]
    assert choose(needs(labels={"zone": "y", "rack": "1"}), NODES, []) == ""
