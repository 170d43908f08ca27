"""On which node a process should start. Pure: nodes and what runs on them in, a node id out.

"spread" prefers the node with the fewest of the same pool, so that one node's death takes as little of a pool as
possible; "pack" the node with the most processes of this cluster, so that KV moves inside one machine. Either is a
wish: where nothing fits now, nobody is chosen and Ray decides (or its autoscaler brings a node). Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from deploy.reconcile import Kind

Strategy = Literal["spread", "pack"]


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of the Ray cluster."""

    id: str
    resources: Mapping[str, float] = field(default_factory=dict)  # in all
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """A process of ours that runs, or is about to."""

    kind: Kind
    node_id: str  # empty: not known yet
    resources: Mapping[str, float] = field(default_factory=dict)  # what it books


@dataclass(frozen=True, slots=True)
class Needs:
    kind: Kind
    resources: Mapping[str, float]
    labels: Mapping[str, str]  # a node must have them all
    strategy: Strategy


def choose(needs: Needs, nodes: Sequence[Node], placed: Sequence[Placed]) -> str:
    """The node's id; empty if none that has the labels has room for it."""
    able = [node for node in nodes if has_labels(node, needs.labels) and _has_room(node, needs, placed)]

    def cost(node: Node) -> tuple[int, int, str]:
        here = [process for process in placed if process.node_id == node.id]
        num_same = sum(process.kind is needs.kind for process in here)
        return (num_same, len(here), node.id) if needs.strategy == "spread" else (-len(here), num_same, node.id)

    return min(able, key=cost).id if able else ""


def has_labels(node: Node, labels: Mapping[str, str]) -> bool:
    return labels.items() <= node.labels.items()


def _has_room(node: Node, needs: Needs, placed: Sequence[Placed]) -> bool:
    for name, amount in needs.resources.items():
        booked = sum(process.resources.get(name, 0.0) for process in placed if process.node_id == node.id)
        if node.resources.get(name, 0.0) - booked < amount - 1e-9:
            return False
    return True
