"""How one process is put on the Ray cluster: its actor's options, and the placement group that keeps its room.

A worker that books anything gets a placement group of one bundle, aimed at the node that `deploy.placing` chose: the
room is kept for it while it starts, and the cluster's autoscaler sees what is missing. Groups belong to the job of the
command that started the cluster, and go with it. A worker that books nothing is simply sent to its node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import ray
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from deploy.actors import CONCURRENT_METHODS
from deploy.cluster_config import ClusterConfig
from deploy.placing import Needs, Node, Placed, choose
from deploy.process_config import worker_threads
from deploy.reconcile import Kind


def living_nodes(without: Collection[str] = ()) -> list[Node]:
    """All but those with these ids. Blocks until Ray's head has answered."""
    return [
        Node(node["NodeID"], node.get("Resources") or {}, node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in without
    ]


def chosen_node(config: ClusterConfig, kind: Kind, placed: Sequence[Placed], without: Collection[str] = ()) -> str:
    """Where a process should go, but to none of the nodes `without`; empty: Ray decides."""
    if kind is Kind.ROUTER:
        return config.door_node_id
    pool = config.pool(kind)
    return choose(Needs(kind, pool.booked, pool.labels, pool.placement), living_nodes(without), placed)


def actor_options(config: ClusterConfig, kind: Kind, name: str, node_id: str) -> dict[str, object]:
    """Reserves the room, if any is booked, under the actor's name."""
    threads = worker_threads(config, kind)
    options: dict[str, object] = {
        "name": name,
        "lifetime": "detached",  # it outlives its controller
        "max_restarts": 0,  # a replacement is a new incarnation, never the old one again
        "max_concurrency": CONCURRENT_METHODS,
        "num_cpus": 0,
        # Two OpenMP teams that spin on a busy machine stall each other.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}},
    }
    if kind is Kind.ROUTER:
        return options | _sent_to(node_id)
    pool = config.pool(kind)
    if not pool.booked:
        return options | (_sent_to(node_id) or ({"label_selector": pool.labels} if pool.labels else {}))
    group = placement_group(
        [pool.booked],
        strategy="STRICT_PACK",
        name=name,
        _soft_target_node_id=node_id or None,
        bundle_label_selector=[pool.labels] if pool.labels else None,
    )
    return options | {
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
        "resources": pool.resources,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
    }


def give_back(name: str) -> None:
    """Remove the room kept under this name, if there is any; what still runs in it ends with it."""
    with contextlib.suppress(ValueError):  # there is none
        remove_placement_group(get_placement_group(name))


def _sent_to(node_id: str) -> dict[str, object]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)} if node_id else {}
