"""Operating a running cluster from Python; what the `diptych` commands are made of.

    from deploy.api import find

    with find() as cluster:
        cluster.scale(prefill=3)
        cluster.drain("decode-host-1a2b3c4d")

Every verb returns when its effect is there and says on the way what happens. Speaks to the admin door only, and knows
no Ray.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import httpx
import msgspec

from deploy.admin_wait import drained, gone, role_changed, scaled
from deploy.reconcile import Kind
from deploy.running import Running, RunningFiles
from deploy.status import ClusterStatus
from diptych.errors import BadRequest, DiptychError, WireError, from_wire
from diptych.trust import pinned, trusting

POLL_S = 0.25
REQUEST_TIMEOUT_S = 75.0  # a controller that is being started again included
WAIT_TIMEOUT_S = 600.0  # of a verb's effect

Say = Callable[[str], None]


class AdminError(Exception):
    """The cluster cannot be reached, or a verb had no effect in time; the message says why."""


def find(
    name: str = "", url: str = "", key: str = "", environment: Mapping[str, str] | None = None, ca_file: str = ""
) -> Admin:
    """The admin door of a cluster.

    Args:
        environment: says where this user's state is; the process' own by default.
        name: of one of this user's clusters on this machine; empty: the only one.
        url: of any other; then `key` is needed.
        ca_file: PEM of the authority that signed the certificate of an https `url`; "": a public one.

    Raises:
        AdminError: there is none, or more than one.
    """
    if url:
        return Admin(url, key, trust=_read(trusting, ca_file))
    running = [
        found
        for found in RunningFiles(os.environ if environment is None else environment).alive()
        if not name or found.name == name
    ]
    if not running:
        which = f"called {name!r} " if name else ""
        raise AdminError(
            f"no cluster {which}of this user runs on this machine; start one with diptych up, or name the admin door "
            "of another with --admin URL and its key in DIPTYCH_ADMIN_KEY"
        )
    if len(running) > 1:
        raise AdminError(f"several clusters run: {', '.join(found.name for found in running)}; choose with --cluster")
    found = running[0]
    return Admin(found.admin_url, found.admin_key, running=found, trust=_read(pinned, found.admin_cert))


def _read(trust: Callable[[str], ssl.SSLContext], path: str) -> ssl.SSLContext | None:
    """
    Raises:
        AdminError: the certificate cannot be used.
    """
    try:
        return trust(path) if path else None
    except OSError as error:
        raise AdminError(f"the certificate in {path} cannot be used: {error}") from None


class Admin:
    """A context manager. Every method raises `BadRequest` for what cannot be done and `AdminError` for what failed."""

    def __init__(
        self,
        url: str,
        key: str,
        say: Say = lambda _text: None,
        running: Running | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            say: told in words what happens while a verb takes effect.
            running: the command that runs the cluster, if it does so on this machine.
            trust: which certificates are believed; None: those of public authorities.
        """
        self.say = say
        self.timeout_s = WAIT_TIMEOUT_S
        self._running = running
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=REQUEST_TIMEOUT_S, trust_env=False, verify=trust or True
        )

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def status(self) -> ClusterStatus:
        return msgspec.json.decode(self._request("GET", "/status"), type=ClusterStatus)

    def scale(self, **counts: int | str) -> ClusterStatus:
        """So many processes of each pool named: prefill, decode, router; "auto": as many as the load needs."""
        self._request("POST", "/scale", counts)
        said = {Kind(kind): count for kind, count in counts.items() if isinstance(count, int)}
        return self._until(lambda status: scaled(status, said))

    def drain(self, worker: str, *, replace: bool = True) -> ClusterStatus:
        """A worker finishes and ends; with `replace`, after another has taken its place."""
        id = self._id_of(worker)
        self._request("POST", "/drain", {"worker": worker, "replace": replace})
        return self._until(lambda status: drained(status, id))

    def change_role(self, worker: str, role: Kind) -> ClusterStatus:
        """A worker finishes and ends, and one of the other role starts in its place."""
        id = self._id_of(worker)
        self._request("POST", "/role", {"worker": worker, "role": role.value})
        return self._until(lambda status: role_changed(status, id))

    def down(self) -> None:
        """Everything ends; returns when the command that ran it has, or (elsewhere) when its admin door has closed."""
        self._request("POST", "/down", {})
        deadline = time.monotonic() + self.timeout_s
        said = ""
        while time.monotonic() < deadline:
            try:
                said = self._say_once(gone(self.status()), said)
            except (AdminError, DiptychError) as error:
                if isinstance(error.__cause__, httpx.TransportError) and not (self._running and self._running.alive):
                    return
            time.sleep(POLL_S)
        raise AdminError(f"the cluster is not down after {self.timeout_s:g} s: {said}")

    def _id_of(self, worker: str) -> str:
        process = self.status().find(worker)
        if process is None:
            raise BadRequest(f"there is no worker {worker!r}; see diptych status", param="worker")
        return process.id

    def _until(self, pending: Callable[[ClusterStatus], str]) -> ClusterStatus:
        """Return when nothing is pending; what is, is said whenever it changes."""
        deadline = time.monotonic() + self.timeout_s
        status = self.status()
        num_crashes, said = len(status.crashes), ""
        while left := pending(status):
            said = self._say_once(left, said)
            for crash in status.crashes[num_crashes:]:
                self.say(f"{crash.worker_id or crash.kind} died: {(crash.reason.strip() or '?').splitlines()[-1]}")
            num_crashes = len(status.crashes)
            if time.monotonic() >= deadline:
                raise AdminError(f"no effect within {self.timeout_s:g} s: {left}")
            time.sleep(POLL_S)
            status = self.status()
        return status

    def _say_once(self, text: str, said: str) -> str:
        if text and text != said:
            self.say(text)
        return text

    def _request(self, method: str, path: str, body: Any = None) -> bytes:
        try:
            content = None if body is None else msgspec.json.encode(body)
            answer = self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise AdminError(f"the admin door at {self._http.base_url} cannot be reached: {error}") from error
        if answer.is_success:
            return answer.content
        try:
            refusal = from_wire(msgspec.json.decode(answer.content, type=WireError))
        except ValueError:
            raise AdminError(f"{self._http.base_url}: HTTP {answer.status_code}; is it an admin door?") from None
        if isinstance(refusal, BadRequest):
            raise refusal
        raise AdminError(refusal.message)
