"""Where a router's door is found from its own machine, and which certificates are believed there."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
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


def trusting(ca_file: str) -> ssl.SSLContext:
    """Believes what an authority of this file has signed, for the name that is asked.

    Raises:
        OSError: it cannot be read (ssl.SSLError is one).
    """
    return ssl.create_default_context(cafile=ca_file)


def pinned(cert_file: str) -> ssl.SSLContext:
    """Believes the first certificate of a door's own file, whatever name it is made out to, and not its issuers.

    For a door of this machine: the address asked here is not the name clients know. A certificate that may sign others
    (as self-signed ones often may) is no exception, since only the door has its key.

    Raises:
        OSError: it cannot be read, or holds no certificate (ssl.SSLError is one).
    """
    first = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", Path(cert_file).read_text(), re.S)
    if first is None:
        raise ssl.SSLError(f"{cert_file} holds no certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=first[0])
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be signed by itself
    return context
