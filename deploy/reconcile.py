"""What to do so that the processes which run are the processes which are wanted. Pure: facts in, actions out.

Called again after every change and now and then; an action that failed is simply asked for again. A dead process is
never revived: its replacement is a new incarnation, started at once after a first crash and ever later after more
(a crash loop must not starve the machine). Knows no clock, Ray or Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 30.0
CRASH_MEMORY_S = 120.0  # older crashes do not count


class Kind(StrEnum):
    """The processes a cluster is made of."""

    PREFILL = "prefill"
    DECODE = "decode"
    ROUTER = "router"


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DEAD = "dead"


@dataclass(frozen=True)
class Observed:
    """One process as the controller sees it now."""

    id: str
    kind: Kind
    state: State
    order: int  # rises with every start: tells older from newer
    proven_dead: bool = False  # its process is known to be gone, not merely out of reach


@dataclass(frozen=True)
class Start:
    kind: Kind


@dataclass(frozen=True)
class Stop:
    id: str


@dataclass(frozen=True)
class Tombstone:
    """Tell everyone that this incarnation is dead for good, then forget it."""

    id: str


@dataclass(frozen=True)
class Forget:
    """Drop a process that is out of reach; its membership lease ends by itself."""

    id: str


Action = Start | Stop | Tombstone | Forget


@dataclass(frozen=True)
class Plan:
    actions: list[Action]
    again_at_s: float | None = None  # when a start that is being held back becomes due


def reconcile(
    wanted: Mapping[Kind, int],
    observed: Sequence[Observed],
    crashed_at_s: Mapping[Kind, Sequence[float]],
    now_s: float,
) -> Plan:
    """Compare what is wanted with what is there.

    Args:
        wanted: processes per kind; a kind that is missing is wanted zero times.
        observed: every process not yet forgotten.
        crashed_at_s: when processes of a kind died without being told to, on the clock of `now_s`.
    """
    actions: list[Action] = [
        Tombstone(process.id) if process.proven_dead else Forget(process.id)
        for process in observed
        if process.state is State.DEAD
    ]
    due: list[float] = []
    for kind in Kind:
        alive = [p for p in observed if p.kind is kind and p.state in (State.STARTING, State.RUNNING)]
        missing = wanted.get(kind, 0) - len(alive)
        if missing < 0:
            actions += [Stop(process.id) for process in _least_useful(alive)[:-missing]]
        elif missing > 0:
            start_at_s = not_before_s(crashed_at_s.get(kind, ()), now_s)
            if start_at_s <= now_s:
                actions += [Start(kind)] * missing
            else:
                due.append(start_at_s)
    return Plan(actions, min(due, default=None))


def not_before_s(crashed_at_s: Sequence[float], now_s: float) -> float:
    """Earliest time of the next start: at once after one crash, then 0.5 s, 1 s, 2 s … up to 30 s after the last."""
    recent = [at for at in crashed_at_s if now_s - at < CRASH_MEMORY_S]
    if len(recent) < 2:
        return now_s
    delay_s = BACKOFF_FIRST_S * 2.0 ** min(len(recent) - 2, 16)
    return max(now_s, max(recent) + min(delay_s, BACKOFF_LONGEST_S))


def _least_useful(alive: list[Observed]) -> list[Observed]:
    """What still starts before what runs, the newest (with the smallest cache) first."""
    return sorted(alive, key=lambda p: (p.state is State.RUNNING, -p.order))
