"""From how many uncached tokens on a prefill worker pays. Found by asking the policy: nothing is configured."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

from router.placement.place import place
from router.placement.policy import Policy
from router.placement.views import Avoid, Learnt, PromptView, WorkerView
from router.placement.workers import Roster


def crossover_tokens(
    workers: Sequence[WorkerView],
    policy: Policy,
    learnt: Learnt,
    avoid: Avoid,
    *,
    max_tokens: int,
    block_size: int,
    block_bytes: int,
) -> float:
    """The shortest cold prompt that would go to a prefill worker now; infinity if none of up to `max_tokens` would.

    A shorter prompt is taken to be computed on decode and a longer one remotely. Places log2(max_tokens) prompts.

    Raises:
        NoCapacity: no decode worker is there.
    """

    roster = Roster()

    def goes_remote(num_tokens: int) -> bool:
        prompt = PromptView(num_tokens, ceil(num_tokens / block_size), block_bytes)
        placed = place(prompt, workers, "auto", 0, avoid, matches={}, policy=policy, learnt=learnt, roster=roster)
        return bool(placed.prefill_id)

    if not goes_remote(max_tokens):
        return inf
    low, high = 0, max_tokens  # of `high` tokens goes, of `low` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if goes_remote(middle) else (middle, high)
    return high
