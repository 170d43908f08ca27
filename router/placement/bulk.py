"""The costs of `scene` that the default policy asks of every worker, of many at once: the same sums on columns.

A test compares them with the scene's, worker by worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diptych.messages import Role
from router.placement.scene import Scene
from router.placement.views import WorkerView
from router.placement.workers import Floats, Workers

if TYPE_CHECKING:
    from router.placement.policy import Policy


def columns(scene: Scene, workers: Sequence[WorkerView]) -> Workers:
    """These workers' numbers; a policy's filter may have answered with any sequence."""
    return workers if isinstance(workers, Workers) else Workers.of(workers, scene.matches)


def alone_costs(policy: Policy, scene: Scene, workers: Workers) -> Floats:
    """Both costs of each together, by the policy. Where those are the scene's own they are taken at once.

    Raises:
        TypeError, ValueError: a cost is no number.
    """
    if policy.prefill_cost is Scene.first_token_ms and policy.decode_cost is Scene.decode_ms:
        return first_tokens_ms(scene, workers) + decodes_ms(scene, workers)
    both = (policy.prefill_cost(scene, worker) + policy.decode_cost(scene, worker) for worker in workers)
    return np.fromiter(both, np.float64, len(workers))


def first_tokens_ms(scene: Scene, workers: Workers) -> Floats:
    """As `Scene.first_token_ms` of each."""
    uncached = np.maximum(scene.prompt.num_tokens - workers.matched_tokens, 1)
    return (workers.queued_prefill_tokens + uncached) * _ms_per_token(scene, workers)


def decodes_ms(scene: Scene, workers: Workers) -> Floats:
    """As `Scene.decode_ms` of each."""
    return scene.learnt.expected_tokens * _step_ms(scene, workers)


def _ms_per_token(scene: Scene, workers: Workers) -> Floats:
    own, rates = workers.prefill_ms_per_token, scene.rates
    if not len(workers):
        return own
    of_prefill = workers[0].role is Role.PREFILL
    mean = rates.prefill_own_ms_per_token if of_prefill else rates.decode_own_ms_per_token
    believed = _drawn(own, mean or own, 1 - scene.learnt.error)
    return believed if own.all() else np.where(own != 0, believed, rates.prefill_ms_per_token)


def _step_ms(scene: Scene, workers: Workers) -> Floats:
    rates, batch = scene.rates, workers.num_running + 1
    own = workers.decode_base_ms + workers.decode_ms_per_sequence * batch
    if rates.apart and own.all():
        return own
    mean = rates.decode_base_ms + rates.decode_ms_per_sequence * batch
    believed = own if rates.apart else _drawn(own, mean, 1 - scene.learnt.error)
    return believed if own.all() else np.where(own != 0, believed, mean)


def _drawn(own: Floats, mean: Floats | float, near: float) -> Floats:
    """As `rates.drawn` of each."""
    return np.minimum(np.maximum(mean, own * near), own / near)
