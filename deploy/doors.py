"""Where a router's door is found from its own machine, and why its certificate is not looked at there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
