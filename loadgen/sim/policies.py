"""Placement policies by name: the router's own, and the baselines it is compared with.

The router's own function is one of them, so what is simulated is what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadgen.sim.baselines import least_load, random, round_robin
from loadgen.sim.policy import Policy
from router.placement import Placement, PromptView, WorkerView, place


def min_ttft(remote_prefill: str = "auto") -> Policy:
    """The router's placement: least estimated time to first token, by queue, cached prefix and measured rate."""

    def policy(prompt: PromptView, workers: Sequence[WorkerView], turn: int) -> Placement:
        return place(prompt, workers, remote_prefill, turn)

    return policy


POLICIES: dict[str, Callable[[int], Policy]] = {
    "random": random,
    "round_robin": lambda seed: round_robin,
    "least_load": lambda seed: least_load,
    "min_ttft": lambda seed: min_ttft(),
    "min_ttft_remote": lambda seed: min_ttft("always"),
}


def policy_named(name: str, seed: int) -> Policy:
    """
    Raises:
        ValueError: there is none of this name; says which there are.
    """
    if name not in POLICIES:
        raise ValueError(f"no placement policy is called {name!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[name](seed)
