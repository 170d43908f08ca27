"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    cert: str
    key: str
    ca: str


class Authority:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(folder / "ca.pem")

    def issue(self, *names: str) -> Files:
        """A certificate for `names`, hosts or addresses."""
        issued = self._ca.issue_cert(*names)
        cert, key = self._folder / f"{names[0]}.pem", self._folder / f"{names[0]}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return Files(str(cert), str(key), str(self._folder / "ca.pem"))
