"""Which addresses may be listened at: loopback always, another one only when the user says so plainly.

The doors speak plain HTTP and gRPC today, without keys for clients. Until they have TLS and keys of their own, an
address that others can reach is refused by default; behind a proxy that does TLS and authentication, or in a network
that is trusted as a whole, the user allows it.
"""

from __future__ import annotations

import ipaddress


class ExposureError(ValueError):
    """Somebody else could reach what has no lock; the message says how to go on."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or a name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(what: str, host: str, *, allowed: bool) -> None:
    """
    Args:
        what: listens there, in the user's words.

    Raises:
        ExposureError: others can reach it and nobody has allowed that.
    """
    if not allowed and not is_loopback(host):
        raise ExposureError(
            f"{what} is {host}, which other machines can reach, and there is neither TLS nor a key for clients: keep "
            "it on 127.0.0.1 with a proxy in front that has both, or, in a network you trust as a whole, say "
            "--insecure-network (allow_insecure_network = true in the file)"
        )
