"""Placement: which prefill and decode worker a prompt goes to, in estimated milliseconds. Pure.

views      what it is told and what it answers
rates      how quick a fleet is, and what of a measurement is believed
workers    many views with their numbers side by side
scene      one prompt and the fleet it meets: every cost there is, in ms; `bulk` has some for many workers at once
policy     the interface, four methods
min_ttft   the default policy; `baselines` are for comparison
place      the function; `weigh` shows its sums, `crossover` from what length on a pair pays
"""

from router.placement.place import place
from router.placement.views import (
    LOCAL_REASONS,
    NOTHING,
    REASONS,
    UNLEARNT,
    Avoid,
    Learnt,
    Link,
    Pair,
    Placement,
    PromptView,
    WorkerView,
)

__all__ = [
    "LOCAL_REASONS",
    "NOTHING",
    "REASONS",
    "UNLEARNT",
    "Avoid",
    "Learnt",
    "Link",
    "Pair",
    "Placement",
    "PromptView",
    "WorkerView",
    "place",
]
