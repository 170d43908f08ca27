"""Blind placement, to compare with the router's own. A prompt goes to a prefill worker wherever there is one.

The router has both names too; where every worker computes prompts it breaks their ties by load, so that they are no
longer blind. These are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from diptych.messages import Role
from loadgen.sim.policy import NO_MATCHES, Policy
from router.placement import UNLEARNT, Learnt, Placement, PromptView, WorkerView


def round_robin(
    prompt: PromptView,
    workers: Sequence[WorkerView],
    turn: int,
    learnt: Learnt = UNLEARNT,
    matches: Mapping[str, int] = NO_MATCHES,
) -> Placement:
    """Everybody in turn."""
    return _pair(workers, matches, lambda views: views[turn % len(views)], "round_robin")


def random(seed: int) -> Policy:
    """Anybody; the same for the same seed and turn."""

    def policy(
        prompt: PromptView,
        workers: Sequence[WorkerView],
        turn: int,
        learnt: Learnt = UNLEARNT,
        matches: Mapping[str, int] = NO_MATCHES,
    ) -> Placement:
        def choose(views: Sequence[WorkerView]) -> WorkerView:
            text = f"{seed} {turn} {views[0].role}".encode()
            return views[int.from_bytes(blake2b(text, digest_size=8).digest(), "little") % len(views)]

        return _pair(workers, matches, choose, "random")

    return policy


def _pair(
    workers: Sequence[WorkerView],
    matches: Mapping[str, int],
    choose: Callable[[Sequence[WorkerView]], WorkerView],
    reason: str,
) -> Placement:
    prefills = [view for view in workers if view.role is Role.PREFILL]
    decode = choose([view for view in workers if view.role is Role.DECODE])
    if not prefills:
        return Placement("", decode.worker_id, 0.0, matches.get(decode.worker_id, 0), reason)
    prefill = choose(prefills)
    return Placement(prefill.worker_id, decode.worker_id, 0.0, matches.get(prefill.worker_id, 0), reason)
