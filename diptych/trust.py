"""Which certificates a client of our doors believes: a private authority's, or one file's only. Knows no gRPC."""

from __future__ import annotations

import re
import ssl
from pathlib import Path


def trusting(ca_file: str = "") -> ssl.SSLContext:
    """Believes what an authority of this file has signed, for the name that is asked; empty: the system's authorities.

    Raises:
        OSError: it cannot be read (ssl.SSLError is one).
    """
    return ssl.create_default_context(cafile=ca_file or None)


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
