"""What the controller says about a cluster; JSON between it, the admin door and the commands."""

from __future__ import annotations

import msgspec

from deploy.reconcile import Health, Kind, State
from diptych.messages import WorkerStats


class ClusterError(Exception):
    """The cluster did not start, or does not work any more; the message says why."""


class Hosting(msgspec.Struct, frozen=True, kw_only=True):
    """Which process it is, known as soon as its actor lives."""

    pid: int
    created_at_s: float  # with the pid: this process and no later one
    node_id: str  # Ray's
    node: str  # its address


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    id: str  # the controller's name for it
    kind: Kind
    state: State
    health: Health = Health.OK
    probing: bool = False  # it runs, and no canary has gone through it end to end yet
    leaving: bool = False  # is to be drained, or is being drained
    becomes: Kind | None = None  # the role that follows it
    hosting: Hosting | None = None
    log_path: str
    record: msgspec.Raw = msgspec.Raw(b"null")  # what it said about itself when it was ready, JSON
    stats: WorkerStats | None = None  # a worker's latest, not older than a second while it is healthy

    @property
    def pid(self) -> int:
        return self.hosting.pid if self.hosting else 0

    @property
    def said(self) -> dict[str, object]:
        """The record; empty until there is one."""
        record = msgspec.json.decode(self.record)
        return record if isinstance(record, dict) else {}

    @property
    def name(self) -> str:
        """The incarnation, or the controller's name while there is none."""
        said = self.said
        return str(said.get("worker_id") or said.get("router_id") or self.id)


class Crash(msgspec.Struct, frozen=True, kw_only=True):
    """A process that ended without being told to, and not because it asked to be replaced."""

    kind: Kind
    worker_id: str  # empty for a router, and when it died before it was ready
    pid: int  # 0: unknown
    log_path: str
    reason: str


class PoolAutoscale(msgspec.Struct, frozen=True, kw_only=True):
    """What the load says about one pool."""

    min: int
    max: int
    pinned: bool  # a user has said how many; `diptych scale POOL=auto` lets the load decide again
    wanted: int  # by the latest decision; with "advise" what it would be
    needed: int  # at this moment, before any steadying
    reason: str
    start_s: float  # that a worker is expected to take until it serves


class AutoscaleStatus(msgspec.Struct, frozen=True, kw_only=True):
    mode: str
    pools: dict[Kind, PoolAutoscale]  # none that has no workers
    decided_s_ago: float


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    model: str  # as clients call it
    wanted: dict[Kind, int]
    processes: list[ProcessStatus]
    crashes: list[Crash]  # since this controller began
    complete: bool  # every wanted process runs, and none is on its way out
    placeable: dict[Kind, int] = {}  # workers that every router would use right now; missing: not known
    going_down: bool = False
    controller_pid: int
    autoscale: AutoscaleStatus | None = None  # None: it is off, or nothing was decided yet

    def of(self, kind: Kind) -> list[ProcessStatus]:
        return [process for process in self.processes if process.kind is kind]

    def find(self, name: str) -> ProcessStatus | None:
        """By incarnation or by the controller's name."""
        return next((process for process in self.processes if name in (process.name, process.id)), None)
