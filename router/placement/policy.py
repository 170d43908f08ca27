"""How a pair is chosen: four methods, and what most policies need to write them.

    filter         who is considered at all; called once for each role
    prefill_cost   of computing the prompt on a worker
    decode_cost    of decoding on a worker
    pick           the pair, by those costs

A policy holds no state and asks nobody: all it may use is in the scene, its dice included, so that the same placement
can be made again. Costs are compared within one policy only; `min_ttft` has estimated milliseconds, the baselines what
they look at. A policy of your own is one class in one file, named in `RouterConfig.policy` as "module:Class".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from router.placement.bulk import alone_costs, columns
from router.placement.scene import Scene
from router.placement.views import REMOTE, WorkerView

MAX_CONSIDERED = 8  # of each role, kept with a placement to explain it


@dataclass(frozen=True, slots=True)
class Pick:
    """
    Attributes:
        prefill: None where decode computes the prompt itself; `reason` says why.
        prefills, decodes: what was weighed, best first, to explain the choice.
    """

    prefill: WorkerView | None
    decode: WorkerView
    reason: str = REMOTE
    prefills: Sequence[WorkerView] = ()
    decodes: Sequence[WorkerView] = ()


class Policy(Protocol):
    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        """Those of one role that are considered, at least one. `workers` is not empty."""
        ...

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        """Lower is better. Also asked about decode workers where one has to compute the prompt itself."""
        ...

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:
        """Lower is better."""
        ...

    def pick(self, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
        """Choose among those that were let through. `prefills` may be empty, `decodes` is not.

        Returns None where `scene.allows` no pair; decode then computes the prompt itself, if it may.
        """
        ...


def pick_apart(
    policy: Policy, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]
) -> Pick | None:
    """The cheapest of each role, independently; equals are drawn."""
    rotated = scene.dice.rotated
    by_prefill = sorted(rotated(prefills), key=lambda worker: policy.prefill_cost(scene, worker))
    by_decode = sorted(rotated(decodes), key=lambda worker: policy.decode_cost(scene, worker))
    return first_allowed(scene, by_prefill, by_decode)


def first_allowed(scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
    """The first pair, in this order, that is not to be avoided."""
    for prefill in prefills:
        for decode in decodes:
            if scene.allows(prefill, decode):
                return Pick(prefill, decode, prefills=prefills, decodes=decodes)
    return None


def pick_alone(policy: Policy, scene: Scene, decodes: Sequence[WorkerView], reason: str) -> Pick | None:
    """The decode worker that does both at the least cost, of equals the least busy; None: avoid them all."""
    able = columns(scene, decodes).rotated(scene.dice)
    if not scene.allows_all:
        able = able.where(np.array([scene.allows(None, worker) for worker in able], np.bool_))
    if not len(able):
        return None
    costs = alone_costs(policy, scene, able)
    last = min(MAX_CONSIDERED, costs.size) - 1
    some = (~(costs > np.partition(costs, last)[last])).nonzero()[0]  # a thousand need not be sorted; NaN comes last
    order = np.lexsort((able.num_running.take(some), costs.take(some)))
    best = [able[at] for at in some.take(order[:MAX_CONSIDERED]).tolist()]
    return Pick(None, best[0], reason, decodes=best)
