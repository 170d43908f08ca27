"""Policies by the name an operator gives: a built-in one, or anybody's as "module:Class"."""

from __future__ import annotations

from importlib import import_module

from router.placement.baselines import LeastLoad, PowerOfTwo, PrefixOnly, Random, RoundRobin
from router.placement.min_ttft import MinTtft
from router.placement.policy import Policy

POLICIES: dict[str, type[Policy]] = {
    "min-ttft": MinTtft,
    "random": Random,
    "round-robin": RoundRobin,
    "least-load": LeastLoad,
    "power-of-two": PowerOfTwo,
    "prefix-only": PrefixOnly,
}
_METHODS = ("filter", "prefill_cost", "decode_cost", "pick")


def policy_named(name: str) -> Policy:
    """
    Raises:
        ValueError: there is no such policy; says which there are, or what is wrong with one's own.
    """
    if ":" not in name:
        if name not in POLICIES:
            raise ValueError(f"policy is {name!r}; it is one of {', '.join(POLICIES)}, or your own as 'module:Class'")
        return POLICIES[name]()
    module, _, attribute = name.partition(":")
    try:
        policy: Policy = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"policy {name!r} cannot be made: {error}") from error
    if missing := [method for method in _METHODS if not callable(getattr(policy, method, None))]:
        raise ValueError(f"policy {name!r} has no {', '.join(missing)} (see router.placement.policy.Policy)")
    return policy
