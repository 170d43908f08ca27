"""Where a router's door is found from its own machine, and how far its certificate is looked at there."""

from __future__ import annotations

import ssl
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


def pinned(cert_file: str) -> ssl.SSLContext:
    """Trusts exactly this certificate, under whatever name it is reached.

    Raises:
        OSError: it cannot be read (ssl.SSLError is one).
    """
    context = ssl.create_default_context(cafile=cert_file)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate that an authority signed can be pinned, too
    return context
