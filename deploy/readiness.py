"""Why a cluster is not whole yet, as its processes' states and its routers' public doors tell it, in words.

Where keys are required, a door tells what stands behind it to those who have one; anybody else learns counts only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import httpx

from deploy.doors import UNVERIFIED, door_url, read_health
from deploy.reconcile import Health, Kind, State
from deploy.status import ClusterStatus
from deploy.wanted import POOLS

KEY_VARIABLE = "DIPTYCH_API_KEY"  # of the environment: a client's key
DOOR_TIMEOUT_S = 10.0


def delay(status: ClusterStatus, key: str = "") -> str:
    """What a cluster is still waiting for; empty when nothing shows.

    Args:
        key: of a client; "": none is shown.
    """
    return "; ".join([*_late(status), *filter(None, [unready(status, key)])])


def unready(status: ClusterStatus, key: str = "") -> str:
    """Why a public door does not call the cluster healthy and whole; empty when all that are open do."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for router in status.of(Kind.ROUTER):
        if router.state is not State.RUNNING:
            continue
        url = f"{door_url(router.said)}/health"
        try:
            answer = httpx.get(url, headers=headers, timeout=DOOR_TIMEOUT_S, trust_env=False, verify=UNVERIFIED)
            why = _why_not(answer, status.wanted)
        except (httpx.HTTPError, ValueError) as error:
            return f"{url} cannot be read: {error}"
        if why:
            return f"{url} says: {why}"
    return ""


def _late(status: ClusterStatus) -> Iterator[str]:
    for process in status.processes:
        if process.state is not State.RUNNING:
            yield f"{process.name} is {process.state}"
        elif process.health is not Health.OK:
            yield f"{process.name} is {process.health}"
        elif process.leaving:
            yield f"{process.name} is leaving"
    for kind, count in status.wanted.items():
        if (there := len(status.of(kind))) != count:
            yield f"{kind}: {there} of {count} are there"


def _why_not(answer: httpx.Response, wanted: Mapping[Kind, int]) -> str:
    """
    Raises:
        ValueError: it is no answer of a router.
    """
    health, healthy = read_health(answer.content), answer.status_code == 200
    there = health.num_workers
    missing = [f"{there[kind]} of {wanted[kind]} {kind} workers serve" for kind in POOLS if there[kind] < wanted[kind]]
    if healthy and not missing:
        return ""
    probing = health.details.probing.items()
    unproved = [f"no canary has gone through {id}{f': {reason}' if reason else ''}" for id, reason in probing]
    hidden = not healthy and not health.reasons
    hint = [f"HTTP {answer.status_code}; with a client's key in {KEY_VARIABLE} it says why"] if hidden else []
    return "; ".join([*missing, *health.reasons, *unproved, *hint])
