"""Placement policies by name: the router's own, which are the very code that serves, and two blind ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from loadgen.sim.baselines import random, round_robin
from loadgen.sim.policy import NO_MATCHES, Policy
from router.placement import UNLEARNT, Learnt, Placement, PromptView, WorkerView, place
from router.placement import named as of_router
from router.placement.workers import Roster


def routed(name: str = "min-ttft", seed: int = 0, remote_prefill: str = "auto") -> Policy:
    """A policy of the router, asked as `router.placer` asks it."""
    chosen, roster = of_router.policy_named(name), Roster()

    def policy(
        prompt: PromptView,
        workers: Sequence[WorkerView],
        turn: int,
        learnt: Learnt = UNLEARNT,
        matches: Mapping[str, int] = NO_MATCHES,
    ) -> Placement:
        return place(
            prompt,
            workers,
            remote_prefill,
            turn,
            matches=matches,
            policy=chosen,
            learnt=learnt,
            seed=seed,
            roster=roster,
        )

    return policy


def min_ttft(remote_prefill: str = "auto") -> Policy:
    """The router's default: least estimated time, by queue, cached prefix and measured rates."""
    return routed("min-ttft", remote_prefill=remote_prefill)


POLICIES: dict[str, Callable[[int], Policy]] = {
    "random": random,
    "round_robin": lambda seed: round_robin,
    "least_load": lambda seed: routed("least-load", seed),
    "power_of_two": lambda seed: routed("power-of-two", seed),
    "prefix_only": lambda seed: routed("prefix-only", seed),
    "min_ttft": lambda seed: routed("min-ttft", seed),
    "min_ttft_remote": lambda seed: routed("min-ttft", seed, "always"),
}


def policy_named(name: str, seed: int) -> Policy:
    """With underscores or, as operators write them, hyphens.

    Raises:
        ValueError: there is none of this name; says which there are.
    """
    made = POLICIES.get(name.replace("-", "_"))
    if made is None:
        raise ValueError(f"no placement policy is called {name!r}; there are: {', '.join(POLICIES)}")
    return made(seed)
