"""Placement policies as a user would write them, one usable and two that are not."""

from __future__ import annotations

from collections.abc import Sequence

from router.placement import WorkerView
from router.placement.policy import Pick, first_allowed
from router.placement.scene import Scene


class LastAlphabetically:
    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return sorted(workers, key=lambda worker: worker.worker_id, reverse=True)

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        return 0.0

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:
        return 0.0

    def pick(self, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
        return first_allowed(scene, prefills, decodes)


class Incomplete:
    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return workers


class NeedsArguments:
    def __init__(self, weight: float) -> None:
        self.weight = weight
