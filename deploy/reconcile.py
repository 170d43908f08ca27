"""What to do so that the processes which run are the processes which are wanted. Pure: facts in, actions out.

Called again after every change and now and then; an action that failed is simply asked for again. A dead process is
never revived: its replacement is a new incarnation, started at once after a first crash and ever later after more
(a crash loop must not starve the machine). A worker that is to leave (a drain, a change of role) goes on serving until
every router can do without it. Knows no clock, Ray or Redis.
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


class Health(StrEnum):
    """What its progress says; a process that answers but gets nowhere is not healthy."""

    OK = "ok"
    SUSPECT = "suspect"
    LOST = "lost"  # not to be waited for any longer


@dataclass(frozen=True)
class Observed:
    """One process as the controller sees it now."""

    id: str
    kind: Kind
    state: State
    order: int  # rises with every start: tells older from newer
    proven_dead: bool = False  # its process is known to be gone, not merely out of reach
    health: Health = Health.OK
    leaving: bool = False  # to be drained, as soon as it can be spared
    becomes: Kind | None = None  # a worker of this kind is to take the place it leaves


@dataclass(frozen=True)
class Start:
    kind: Kind


@dataclass(frozen=True)
class Stop:
    """Drain, then end."""

    id: str


@dataclass(frozen=True)
class Kill:
    """End at once what no longer listens."""

    id: str


@dataclass(frozen=True)
class Tombstone:
    """Tell everyone that this incarnation is dead for good, then forget it."""

    id: str


@dataclass(frozen=True)
class Forget:
    """Drop a process that is out of reach; its membership lease ends by itself."""

    id: str


Action = Start | Stop | Kill | Tombstone | Forget


@dataclass(frozen=True)
class Plan:
    actions: list[Action]
    again_at_s: float | None = None  # when a start that is being held back becomes due


def reconcile(
    wanted: Mapping[Kind, int],
    observed: Sequence[Observed],
    crashed_at_s: Mapping[Kind, Sequence[float]],
    now_s: float,
    placeable: Mapping[Kind, int] | None = None,
    surge: bool = True,
) -> Plan:
    """Compare what is wanted with what is there.

    Args:
        wanted: processes per kind; a kind that is missing is wanted zero times.
        observed: every process not yet forgotten.
        crashed_at_s: when processes of a kind died without being told to, on the clock of `now_s`.
        placeable: workers of a kind that every router would use right now; a missing kind: not known.
        surge: start a replacement before the one that leaves is drained. False: the machine has no room for both.
    """
    actions: list[Action] = [
        Tombstone(process.id) if process.proven_dead else Forget(process.id)
        for process in observed
        if process.state is State.DEAD
    ]
    actions += [Kill(p.id) for p in observed if _is_up(p) and p.health is Health.LOST]
    spared = {
        process.id for kind in Kind for process in _spared(kind, wanted.get(kind, 0), observed, placeable or {}, surge)
    }
    actions += [Stop(id) for id in sorted(spared)]
    due: list[float] = []
    for kind in Kind:
        keepers = [p for p in observed if p.kind is kind and _serves(p) and not p.leaving]
        missing = wanted.get(kind, 0) - len(keepers)
        if missing < 0:
            actions += [Stop(process.id) for process in _least_useful(keepers)[:-missing]]
        elif (missing := missing - _promised(kind, observed, spared, surge) - _ports_held(kind, observed)) > 0:
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


def _is_up(process: Observed) -> bool:
    return process.state in (State.STARTING, State.RUNNING)


def _serves(process: Observed) -> bool:
    return _is_up(process) and process.health is not Health.LOST


def _spared(
    kind: Kind, wanted: int, observed: Sequence[Observed], placeable: Mapping[Kind, int], surge: bool
) -> list[Observed]:
    """Those that leave now: the rest of the pool, as the routers see it, is as large as it should be without them."""
    leaving = [p for p in observed if p.kind is kind and _serves(p) and p.leaving]
    if not surge:
        return leaving
    starting = [p for p in leaving if p.state is State.STARTING]
    running = [p for p in leaving if p.state is State.RUNNING]
    num_spare = max(0, placeable.get(kind, 0) - wanted) if wanted else len(running)
    return starting + running[:num_spare]


def _promised(kind: Kind, observed: Sequence[Observed], spared: set[str], surge: bool) -> int:
    """Places of this kind that are taken until a process of another kind has left: a change of role is a drain first,
    then a start. Without room for a surge the successor of a drained worker waits in the same way."""
    leaving = [p for p in observed if p.state is State.STOPPING or p.id in spared]
    return sum(p.becomes is kind or (not surge and p.leaving and p.becomes is None and p.kind is kind) for p in leaving)


def _ports_held(kind: Kind, observed: Sequence[Observed]) -> int:
    """Routers that are about to end: clients know the ports, so whoever follows waits for them."""
    if kind is not Kind.ROUTER:
        return 0
    return sum(p.kind is kind and p.state is not State.DEAD and not _serves(p) for p in observed)


def _least_useful(alive: list[Observed]) -> list[Observed]:
    """What still starts before what is suspect before what runs well, the newest (with the smallest cache) first."""
    return sorted(alive, key=lambda p: (p.state is State.RUNNING, p.health is Health.OK, -p.order))
