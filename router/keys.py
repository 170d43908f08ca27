"""Who may use the doors: keys of clients, each of one tenant.

The file names no key, only SHA-256 digests of keys, so whoever reads it cannot use them. A key is 256 random bits: a
plain digest is enough, and looking one up by its digest tells nothing through its timing.

    [[keys]]
    tenant = "acme"
    sha256 = "…64 hexadecimal digits…"

The file may be changed while the router runs: it is looked at again at most once a second. One that has become
unreadable changes nothing, so a slip of the pen locks nobody out and lets nobody in.
"""

from __future__ import annotations

import hashlib
import secrets
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from diptych.errors import Unauthorized
from diptych.telemetry import Logger

LOOK_AGAIN_S = 1.0
KEY_PREFIX = "sk-diptych-"  # so that scanners for leaked secrets know one when they see it
MAX_TENANT_CHARS = 64

Stamp = tuple[int, int, int, int]  # of a file: inode, modification and change time in ns, size


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenant: str
    sha256: str


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[_Key] = []


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def key_entry(tenant: str, key: str) -> str:
    """What to add to the file for a key."""
    return f'\n[[keys]]\ntenant = "{_checked(tenant)}"\nsha256 = "{_digest(key).hex()}"\n'


def parse_keys(text: str) -> dict[bytes, str]:
    """Tenants by digest.

    Raises:
        ValueError: it is not TOML, or not a file of keys; the message says where.
    """
    file = msgspec.convert(tomllib.loads(text), _KeyFile)  # TOMLDecodeError and ValidationError are ValueErrors
    tenants = {}
    for key in file.keys:
        try:
            digest = bytes.fromhex(key.sha256)
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError(f"the sha256 of a key of tenant {key.tenant!r} is not 64 hexadecimal digits")
        tenants[digest] = _checked(key.tenant)
    return tenants


class Keys:
    """The keys of one file; without a file everybody is let in, as nobody's tenant."""

    def __init__(self, path: str, log: Logger, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: monotonic seconds.

        Raises:
            ValueError: the file cannot be used.
        """
        self._path = Path(path) if path else None
        self._log = log
        self._clock = clock
        self._tenants: Mapping[bytes, str] = {}
        self._stamp: Stamp = (0, 0, 0, 0)
        self._looked_at = clock()
        if self._path is not None:
            self._stamp = self._stat(self._path)
            self._tenants = self._read(self._path)

    @property
    def required(self) -> bool:
        return self._path is not None

    def tenant_of(self, authorization: str) -> str:
        """
        Args:
            authorization: the header's value, "Bearer KEY".

        Returns:
            The tenant; "" where no keys are required.

        Raises:
            Unauthorized: there is no key, or no such.
        """
        if self._path is None:
            return ""
        self._look_again(self._path)
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("this cluster wants a key: send Authorization: Bearer KEY")
        tenant = self._tenants.get(_digest(key.strip()))
        if tenant is None:
            raise Unauthorized("the key is not known here; it is wrong, or was withdrawn")
        return tenant

    def _look_again(self, path: Path) -> None:
        now = self._clock()
        if now - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = now
        try:
            stamp = self._stat(path)
            if stamp == self._stamp:
                return
            self._tenants = self._read(path)
            self._stamp = stamp  # not before: what could not be read is tried again
        except ValueError as error:
            self._log.error("api_keys_unreadable", reason=str(error), next="the keys read before stay in force")
        else:
            self._log.info("api_keys_read", keys=len(self._tenants))

    @staticmethod
    def _stat(path: Path) -> Stamp:
        try:
            status = path.stat()
        except OSError as error:
            raise ValueError(f"{path} (api_keys_file) cannot be read: {error.strerror}") from None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    @staticmethod
    def _read(path: Path) -> dict[bytes, str]:
        try:
            return parse_keys(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} (api_keys_file) is not a file of keys: {error}") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _checked(tenant: str) -> str:
    if not 0 < len(tenant) <= MAX_TENANT_CHARS or not all(char.isalnum() or char in "-_." for char in tenant):
        raise ValueError(
            f"tenant is {tenant!r}; give 1 to {MAX_TENANT_CHARS} letters, digits, dots, dashes and underscores"
        )
    return tenant
