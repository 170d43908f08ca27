"""What to do about a certificate that was not believed."""

from __future__ import annotations

import ssl

HINT = "give the file of a private authority with --ca; the certificate must name the host that is asked"


def hint(error: BaseException) -> str:
    """What to do about a certificate that was not believed, as the end of a message; else nothing."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(seen):
            return f"; {HINT}"
        seen = seen.__cause__ or seen.__context__
    return ""
