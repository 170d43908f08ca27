"""Policies to compare the default with. Each looks at one thing; none knows milliseconds.

The prompt goes to a prefill worker wherever there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diptych.messages import Role
from router.placement.policy import Pick, first_allowed, pick_apart
from router.placement.scene import Scene
from router.placement.views import WorkerView

DRAWS = 1 << 30  # as good as no two alike


@dataclass(frozen=True, slots=True)
class Random:
    """Anybody, blind."""

    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return workers

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        return scene.dice.below(DRAWS)

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:
        return scene.dice.below(DRAWS)

    def pick(self, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
        return pick_apart(self, scene, prefills, decodes)


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Everybody in turn, blind."""

    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        start = scene.turn % len(workers)
        return [*workers[start:], *workers[:start]]

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        return 0.0

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:
        """How far it is from its turn."""
        colleagues = scene.prefills if worker.role is Role.PREFILL else scene.decodes
        return (colleagues.index(worker) - scene.turn) % len(colleagues)

    def pick(self, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
        return first_allowed(scene, prefills, decodes)


@dataclass(frozen=True, slots=True)
class LeastLoad:
    """The fewest prompt tokens waiting, and the fewest sequences; knows nothing of caches."""

    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return workers

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        return worker.queued_prefill_tokens

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:
        return worker.num_running

    def pick(self, scene: Scene, prefills: Sequence[WorkerView], decodes: Sequence[WorkerView]) -> Pick | None:
        return pick_apart(self, scene, prefills, decodes)


@dataclass(frozen=True, slots=True)
class PowerOfTwo(LeastLoad):
    """The less loaded of two that are drawn (Mitzenmacher, "The power of two choices", IEEE TPDS 2001)."""

    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        first, *others = scene.dice.rotated(workers)
        return [first, others[scene.dice.below(len(others))]] if others else [first]


@dataclass(frozen=True, slots=True)
class PrefixOnly(Random):
    """The longest cached prefix, whatever waits there. Shown for its collapse: one shared block, one worker."""

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        return scene.uncached(worker)

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:
        return scene.uncached(worker)
