"""Where a router's door is found from its own machine, why its certificate is not looked at there, and what it says of
the cluster's health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deploy.reconcile import Kind
from deploy.wanted import POOLS

# For asking a door of this machine after its health: nothing is sent that anybody could use, and the certificate is
# made out to the name clients know, not to the address asked here.
UNVERIFIED = False


def door_url(said: Mapping[str, Any]) -> str:
    """A door on this machine.

    Args:
        said: what its router says of itself, the fields of a `RouterRecord`.
    """
    host, _, port = str(said["http_address"]).rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    scheme = "https" if said.get("tls") else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Details(msgspec.Struct, frozen=True):
    prefill_workers: int = 0  # that the router would place requests on
    decode_workers: int = 0
    probing: dict[str, str] = {}  # incarnations that no canary has gone through: why not; "" for who has no key
    queued_tokens: int = 0  # of prompts that wait in it


class DoorHealth(msgspec.Struct, frozen=True):
    """The answer of `/health`, as far as it matters here."""

    details: Details
    reasons: tuple[str, ...] = ()

    @property
    def num_workers(self) -> dict[Kind, int]:
        return {kind: getattr(self.details, f"{kind}_workers") for kind in POOLS}


def read_health(answer: bytes) -> DoorHealth:
    """
    Raises:
        ValueError: it is no router's answer; somebody else may listen where one did.
    """
    return msgspec.json.decode(answer, type=DoorHealth)
