"""Which certificates of a cluster's doors are believed: a public authority's, a private one's, or one file's only."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

HINT = "give the file of a private authority with --ca; the certificate must name the host that is asked"


def trusting(ca_file: str = "") -> ssl.SSLContext:
    """Believes what an authority of this file has signed, for the name that is asked; empty: the system's authorities.

    Raises:
        OSError: it cannot be read (ssl.SSLError is one).
    """
    return ssl.create_default_context(cafile=ca_file or None)


def pinned(cert_file: str) -> ssl.SSLContext:
    """Believes the first certificate of a door's own file, whatever name it is made out to, and not its issuers: for a
    door of this machine, which is asked by its address.

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


def hint(error: BaseException) -> str:
    """What to do about a certificate that was not believed, as the end of a message; else nothing."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(seen):
            return f"; {HINT}"
        seen = seen.__cause__ or seen.__context__
    return ""
