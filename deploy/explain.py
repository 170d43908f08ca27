"""Asks the routers of a cluster why a request went where it went: each at its own admin door, until one remembers it.

The doors of the routers are named in what they said when they were ready, which is part of the cluster's status. By
default they listen on loopback, so this has to run where a router runs, or be given a door's address.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

import httpx
import msgspec

from deploy.api import AdminError
from deploy.reconcile import Kind
from deploy.status import ClusterStatus
from diptych.errors import BadRequest
from router.explain import Explanation

TIMEOUT_S = 5.0


def admin_doors(status: ClusterStatus) -> list[str]:
    """host:port of the routers' admin doors, as far as they have said so."""
    said = (process.said.get("admin_address") for process in status.of(Kind.ROUTER))
    return [str(address) for address in said if address]


def explain(doors: Sequence[str], request_id: str) -> Explanation:
    """
    Raises:
        BadRequest: no router remembers the request.
        AdminError: there is no router, or none of them could be asked.
    """
    if not doors:
        raise AdminError("no router runs that could be asked")
    unreachable = []
    for door in doors:
        try:
            url = f"http://{door}/explain/{quote(request_id, safe='')}"
            answer = httpx.get(url, timeout=TIMEOUT_S, trust_env=False)
        except httpx.TransportError as error:
            unreachable.append(f"{door} ({error})")
            continue
        if answer.status_code == httpx.codes.OK:
            return msgspec.json.decode(answer.content, type=Explanation)
        if answer.status_code != httpx.codes.NOT_FOUND:
            unreachable.append(f"{door} (HTTP {answer.status_code})")
    if unreachable:
        raise AdminError(
            f"not explained; these routers' admin doors could not be asked from here: {', '.join(unreachable)}"
        )
    raise BadRequest(f"no router remembers {request_id!r}: each keeps only its latest requests", param="request_id")
