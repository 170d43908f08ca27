"""The commands that operate a running cluster, from any terminal: thin shells of `deploy.api`.

Each returns when its effect is there and prints on the way what happens; the exit code is 1, with the reason on stderr,
if it cannot be done or was not done in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from deploy.api import WAIT_TIMEOUT_S, Admin, AdminError, find
from deploy.progress import Progress
from deploy.reconcile import Kind
from deploy.status_table import table
from diptych.errors import BadRequest


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Where:
    """Which cluster.

    Parameters
    ----------
    cluster
        The name of one of yours on this machine; empty: the only one.
    admin
        URL of its admin door, for any other.
    admin_key
        The door's key, with --admin; better given in DIPTYCH_ADMIN_KEY than on the command line.
    admin_ca
        PEM file of the authority that signed the certificate of an https --admin, if it is not a public one.
    timeout
        Seconds to wait for the effect.
    """

    cluster: str = ""
    admin: str = ""
    admin_key: Annotated[str, Parameter(env_var="DIPTYCH_ADMIN_KEY", show_default=False)] = ""
    admin_ca: str = ""
    timeout: float = WAIT_TIMEOUT_S


HERE = Where()


def status(*, where: Where = HERE, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show every process of the cluster: role, node, incarnation, state, load, cache, speeds.

    Parameters
    ----------
    json
        Print the whole status as JSON.
    """

    def show(admin: Admin, _progress: Progress) -> None:
        found = admin.status()
        print(msgspec.json.encode(found).decode() if json else table(found))

    return _operate(where, show)


def scale(*counts: str, where: Where = HERE) -> int:
    """Change how many processes there are, e.g. `diptych scale prefill=3 decode=2`. Workers drain before they go.

    Parameters
    ----------
    counts
        prefill=N, decode=N, router=N. With autoscaling a pool stays at N until it is told prefill=auto or decode=auto.
    """

    def change(admin: Admin, progress: Progress) -> None:
        admin.scale(**_counts(counts))
        progress.step("scale", "done: " + ", ".join(counts))

    return _operate(where, change)


def drain(worker: str, *, replace: bool = True, where: Where = HERE) -> int:
    """Let a worker finish its requests and end, after another has taken its place.

    Parameters
    ----------
    worker
        As `diptych status` calls it.
    replace
        With --no-replace the pool is one smaller from then on.
    """

    def change(admin: Admin, progress: Progress) -> None:
        admin.drain(worker, replace=replace)
        progress.step("drain", f"{worker} is gone")

    return _operate(where, change)


def role(worker: str, to: Literal["prefill", "decode"], *, where: Where = HERE) -> int:
    """Change a worker's role: it finishes its requests and ends, and one of the other role starts in its place.

    Parameters
    ----------
    worker
        As `diptych status` calls it.
    to
        Its new role.
    """

    def change(admin: Admin, progress: Progress) -> None:
        admin.change_role(worker, Kind(to))
        progress.step("role", f"{worker} is gone, a {to} worker took its place")

    return _operate(where, change)


def down(*, where: Where = HERE) -> int:
    """End the cluster: its doors first, then its workers, when they have finished their requests."""

    def end(admin: Admin, progress: Progress) -> None:
        admin.down()
        progress.step("down", "the cluster is gone")

    return _operate(where, end)


def explain(
    request_id: str, *, router: str = "", where: Where = HERE, json: Annotated[bool, Parameter(negative=())] = False
) -> int:
    """Show why a request went where it went: candidates with each term in ms, what was believed, what came true.

    Parameters
    ----------
    request_id
        The answer's id, or the X-Request-Id that the client sent.
    router
        HOST:PORT of a router's admin door; otherwise every router of the cluster is asked.
    json
        Print everything that is known as JSON.
    """

    # these bring modules of the router: a tenth of a second that no other verb needs
    from deploy.explain import admin_doors
    from deploy.explain import explain as explain_by
    from deploy.explain_text import explained

    def show(doors: Sequence[str]) -> None:
        found = explain_by(doors, request_id)
        print(msgspec.json.encode(found).decode() if json else explained(found))

    if not router:
        return _operate(where, lambda admin, _progress: show(admin_doors(admin.status())))
    try:
        show([router])
    except (AdminError, BadRequest) as error:
        Progress().error(str(error))
        return 1
    return 0


verbs: tuple[Callable[..., int], ...] = (status, scale, drain, role, down, explain)


def _operate(where: Where, act: Callable[[Admin, Progress], None]) -> int:
    progress = Progress()
    try:
        with find(where.cluster, where.admin, where.admin_key, ca_file=where.admin_ca) as admin:
            admin.say = lambda text: progress.step("wait", text)
            admin.timeout_s = where.timeout
            act(admin, progress)
    except (AdminError, BadRequest) as error:
        progress.error(str(error))
        return 1
    return 0


def _counts(pairs: tuple[str, ...]) -> dict[str, int | str]:
    """
    Raises:
        BadRequest: one is not NAME=NUMBER or NAME=auto, or nothing is named.
    """
    counts: dict[str, int | str] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        if name not in list(Kind) or not (number.isdecimal() or number == "auto"):
            raise BadRequest(f"{pair!r} is not a count; write e.g. prefill=3 decode=2")
        counts[name] = int(number) if number.isdecimal() else number
    if not counts:
        raise BadRequest("say how many of what, e.g. prefill=3 decode=2")
    return counts
