"""When a verb has had its effect, seen in the status; until then, what is still missing, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.reconcile import Kind, State
from deploy.status import ClusterStatus, ProcessStatus
from deploy.wanted import POOLS


def scaled(status: ClusterStatus, counts: Mapping[Kind, int]) -> str:
    """Empty when so many processes run, none is too many, and the routers know all workers."""
    return "; ".join(filter(None, (_pool(status, kind, count) for kind, count in counts.items())))


def drained(status: ClusterStatus, id: str) -> str:
    """Empty when the worker is gone and its pool is whole."""
    process = status.find(id)
    if process is not None:
        return _leaving(status, process)
    return _pools(status)


def role_changed(status: ClusterStatus, id: str) -> str:
    """Empty when the worker is gone and both pools are whole."""
    return drained(status, id)


def gone(status: ClusterStatus) -> str:
    """What is still there on the way down."""
    kinds = [process.kind for process in status.processes]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in Kind if kind in kinds)


def _pools(status: ClusterStatus) -> str:
    return "; ".join(filter(None, (_pool(status, kind, status.wanted[kind]) for kind in POOLS)))


def _pool(status: ClusterStatus, kind: Kind, count: int) -> str:
    there = status.of(kind)
    ready = [process for process in there if process.state is State.RUNNING and not process.leaving]
    seen = kind not in POOLS or status.placeable.get(kind) == count
    if len(ready) == len(there) == count and seen:
        return ""
    others = [_doing(process) for process in there if process not in ready]
    words = ", ".join(f"{others.count(doing)} {doing}" for doing in sorted(set(others)))
    unseen = "" if words or len(ready) != count else "; the routers are yet to see it"
    return f"{kind}: {len(ready)} of {count} run{f', {words}' if words else unseen}"


def _doing(process: ProcessStatus) -> str:
    return "leaving" if process.state is State.RUNNING else str(process.state)


def _leaving(status: ClusterStatus, process: ProcessStatus) -> str:
    if process.state is State.STOPPING:
        running = process.stats.num_running + process.stats.num_waiting if process.stats else 0
        return f"{process.name} drains{f', {running} requests to go' if running else ''}"
    return (
        f"{process.name} serves until it can be spared; {_pools(status) or 'the routers are yet to see who takes over'}"
    )
