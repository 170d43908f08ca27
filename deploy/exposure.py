"""Which addresses may be listened at: loopback always, another one with a lock on it, or when the user says so plainly.

    the routers' doors          TLS and keys for clients
    the admin door              TLS; its key it always has
    workers                     TLS between the cluster's processes, and a network that is trusted with KV blocks:
                                UCX, which carries them, has neither TLS nor keys
    the routers' admin door     nothing: it has no lock

Behind a proxy that does TLS and authentication, or in a network that is trusted as a whole, the user allows it all.
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


def check_exposure(what: str, host: str, *, allowed: bool, lock: str = "") -> None:
    """
    Args:
        what: listens there, in the user's words.
        allowed: plainly, or because everything in `lock` is there.
        lock: what would make it safe, in the file's words.

    Raises:
        ExposureError: others can reach it and nobody has allowed that.
    """
    if not allowed and not is_loopback(host):
        ways = ["keep it on 127.0.0.1, with a proxy in front that does TLS and authentication where others need it"]
        if lock:
            ways.append(f"give it {lock}")
        ways.append(
            "in a network you trust as a whole, say --insecure-network (allow_insecure_network = true in the file)"
        )
        raise ExposureError(f"{what} is {host}, which other machines can reach unchecked: {'; or, '.join(ways)}")
