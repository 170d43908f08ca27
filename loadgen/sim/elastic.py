"""A simulated fleet that grows and shrinks: workers start after a delay, and drain before they go.

Somebody is asked at an interval how many workers of each role there should be, as the controller would ask. A worker is
paid for from the moment it is asked for until it is gone; what still starts goes before what serves, the newest first.
A drain has no deadline here: it lasts as long as the requests. Knows nothing about how the count is decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Protocol

from diptych.messages import Role
from loadgen.sim.cluster import Cluster
from loadgen.sim.event_loop import NS_PER_S
from loadgen.sim.worker import SimWorker


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a scaler is told of one role."""

    wanted: int
    serving: tuple[SimWorker, ...]
    starting_s: tuple[float, ...]  # for how long each has been starting
    queued_tokens: int = 0  # of prompts that wait in the router, if this role computes them


class Scaler(Protocol):
    def scale(self, now_s: float, pools: Mapping[Role, PoolState]) -> Mapping[Role, int]:
        """How many workers there should be from now on."""
        ...

    def started(self, role: Role, took_s: float) -> None:
        """A worker serves."""
        ...


@dataclass(slots=True)
class _Starting:
    role: Role
    since_ns: int
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """Of a wanted count, decided at a time."""

    at_s: float
    role: Role
    before: int
    after: int


@dataclass
class Elastic:
    """Made before `Cluster.run`; `begin` it. Attributes: changes in order; worker_s: paid for, by role."""

    cluster: Cluster
    scaler: Scaler
    start_s: float
    interval_s: float
    until_s: float = 0.0  # goes on asking for so long, also when nothing runs any more
    changes: list[Change] = field(default_factory=list)
    worker_s: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(Role, 0.0))

    def __post_init__(self) -> None:
        self._serving: dict[Role, list[SimWorker]] = {role: [] for role in Role}
        for worker in self.cluster.workers:
            self._serving[worker.role].append(worker)
        self._paid_from_ns = {worker.index: 0 for worker in self.cluster.workers}
        self._starting: list[_Starting] = []
        self._draining: list[SimWorker] = []
        self._wanted = {role: len(workers) for role, workers in self._serving.items()}

    def begin(self) -> None:
        self.cluster.loop.after(round(self.interval_s * NS_PER_S), self._look)

    @property
    def num_reversals(self) -> dict[Role, int]:
        """How often each role's count turned from growing to shrinking or back."""
        turns = dict.fromkeys(Role, 0)
        for role in Role:
            signs = [change.after > change.before for change in self.changes if change.role is role]
            turns[role] = sum(before is not after for before, after in pairwise(signs))
        return turns

    def _look(self) -> None:
        self._let_go()
        now_ns = self.cluster.loop.now_ns
        if self.cluster.over and now_ns >= self.until_s * NS_PER_S:
            self._settle()
            return
        counts = self.scaler.scale(now_ns / NS_PER_S, {role: self._state(role) for role in Role})
        for role, count in counts.items():
            self._want(role, count)
        self.cluster.loop.after(round(self.interval_s * NS_PER_S), self._look)

    def _state(self, role: Role) -> PoolState:
        now_ns = self.cluster.loop.now_ns
        starting = [(now_ns - each.since_ns) / NS_PER_S for each in self._starting if each.role is role]
        queued_tokens = self.cluster.num_queued_tokens if role is Role.PREFILL else 0
        return PoolState(self._wanted[role], tuple(self._serving[role]), tuple(starting), queued_tokens)

    def _want(self, role: Role, count: int) -> None:
        if count == self._wanted[role]:
            return
        self.changes.append(Change(self.cluster.loop.now_ns / NS_PER_S, role, self._wanted[role], count))
        self.cluster.loop.note(b"want", self.cluster.loop.now_ns, count, list(Role).index(role))
        self._wanted[role] = count
        mine = [each for each in self._starting if each.role is role]
        for _ in range(count - len(mine) - len(self._serving[role])):
            self._start(role)
        surplus = len(mine) + len(self._serving[role]) - count
        for each in reversed(mine):
            if surplus > 0:
                surplus -= 1
                each.cancelled = True
                self._starting.remove(each)
                self._pay(role, each.since_ns)
        for worker in self._serving[role][: -surplus - 1 : -1] if surplus > 0 else ():
            self._serving[role].remove(worker)
            self._draining.append(worker)
            self.cluster.drain(worker)

    def _start(self, role: Role) -> None:
        starting = _Starting(role, self.cluster.loop.now_ns)
        self._starting.append(starting)
        self.cluster.loop.after(round(self.start_s * NS_PER_S), partial(self._started, starting))

    def _started(self, starting: _Starting) -> None:
        if starting.cancelled:
            return
        self._starting.remove(starting)
        worker = self.cluster.join(starting.role)
        self._serving[starting.role].append(worker)
        self._paid_from_ns[worker.index] = starting.since_ns
        self.scaler.started(starting.role, self.start_s)

    def _let_go(self) -> None:
        """Of those that drain, the ones that are done."""
        for worker in [worker for worker in self._draining if self.cluster.is_done(worker)]:
            self._draining.remove(worker)
            self._pay(worker.role, self._paid_from_ns[worker.index])

    def _settle(self) -> None:
        """At the end all that is still there is paid for."""
        for worker in (*self._draining, *(each for workers in self._serving.values() for each in workers)):
            self._pay(worker.role, self._paid_from_ns[worker.index])
        for starting in self._starting:
            starting.cancelled = True
            self._pay(starting.role, starting.since_ns)

    def _pay(self, role: Role, since_ns: int) -> None:
        self.worker_s[role] += (self.cluster.loop.now_ns - since_ns) / NS_PER_S
