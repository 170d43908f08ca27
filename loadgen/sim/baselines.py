"""Placement that knows little or nothing, to compare the router's own with. All three know no caches.

The prompt goes to a prefill worker wherever there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

from diptych.messages import Role
from loadgen.sim.policy import Policy
from router.placement import Placement, PromptView, WorkerView


def round_robin(prompt: PromptView, workers: Sequence[WorkerView], turn: int) -> Placement:
    """Everybody in turn, blind."""
    return _pair(workers, lambda views: views[turn % len(views)], "round_robin")


def random(seed: int) -> Policy:
    """Anybody, blind; the same for the same seed and turn."""

    def policy(prompt: PromptView, workers: Sequence[WorkerView], turn: int) -> Placement:
        def choose(views: Sequence[WorkerView]) -> WorkerView:
            text = f"{seed} {turn} {views[0].role}".encode()
            return views[int.from_bytes(blake2b(text, digest_size=8).digest(), "little") % len(views)]

        return _pair(workers, choose, "random")

    return policy


def least_load(prompt: PromptView, workers: Sequence[WorkerView], turn: int) -> Placement:
    """The fewest prompt tokens before it, then the fewest sequences; knows load and nothing of caches."""

    def choose(views: Sequence[WorkerView]) -> WorkerView:
        start = turn % len(views)
        rotated = [*views[start:], *views[:start]]  # `min` keeps the first of equals
        return min(rotated, key=lambda view: (view.queued_prefill_tokens, view.num_running))

    return _pair(workers, choose, "least_load")


def _pair(
    workers: Sequence[WorkerView], choose: Callable[[Sequence[WorkerView]], WorkerView], reason: str
) -> Placement:
    prefills = [view for view in workers if view.role is Role.PREFILL]
    decode = choose([view for view in workers if view.role is Role.DECODE])
    if not prefills:
        return Placement("", decode.worker_id, 0.0, decode.matched_tokens, reason)
    prefill = choose(prefills)
    return Placement(prefill.worker_id, decode.worker_id, 0.0, prefill.matched_tokens, reason)
