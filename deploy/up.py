"""`diptych up`: starts everything in order, shows that it works, stays, and stops everything in the reverse order.

model ─► Valkey ─► Ray ─► admin door ─► controller ─► prefill, decode, router ─► a canary ─► one question
"""

from __future__ import annotations

import os
import secrets
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from deploy.admin_door import make_admin_app
from deploy.ask import AskError, ask, chat_body, summary
from deploy.cluster import Cluster, describe_crash
from deploy.cluster_config import ClusterConfig
from deploy.doors import door_url
from deploy.embedded_valkey import ValkeyError
from deploy.leftovers import Footprint
from deploy.model_store import ModelError
from deploy.prepare import prepare
from deploy.progress import Progress
from deploy.ray_runtime import RayUnavailable
from deploy.readiness import KEY_VARIABLE
from deploy.reconcile import Kind, State
from deploy.running import Running, RunningFiles
from deploy.status import ClusterError, ClusterStatus
from deploy.supervise import Told, stop_listening
from deploy.web_server import served
from diptych.trust import pinned

WATCH_INTERVAL_S = 1.0
HANG_S = 20.0  # of the controller; far less than the time after which processes believe that there is none
GONE_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What the command line says."""

    ray_address: str  # empty: a Ray of our own
    prompt: str
    max_tokens: int
    once: bool
    cluster: ClusterConfig


def up(options: UpOptions, folder: Path, progress: Progress) -> int:
    """Run a cluster until told to stop; returns the exit code.

    Args:
        folder: of this run, removed by the caller.
    """
    footprint = Footprint(ignored=folder)
    told_down = threading.Event()
    code, running = 0, False
    try:
        with ExitStack() as stack:
            config = prepare(options.cluster, options.ray_address, folder, stack, progress)
            cluster = Cluster(config, key=os.environ.get(KEY_VARIABLE, ""))
            progress.step("admin", stack.enter_context(_admin_door(cluster, told_down)))
            stack.enter_context(cluster)
            stack.callback(footprint.add_descendants, psutil.Process())  # before anything is stopped
            status = cluster.wait_until_ready(config.limits.start_timeout_s, progress, told_down.is_set)
            progress.step("ready", "a canary went end to end")
            _ask(options, config, status, progress)
            _explain(config, status, progress)
            running = True
            if not options.once:
                _watch(cluster, status, told_down, progress)
            stop_listening()
            progress.step("stop", "stopping")
    except Told as told:
        code = 0 if running else told.exit_code
    except (ModelError, ValkeyError, RayUnavailable, ClusterError, AskError, ValueError, OSError) as error:
        progress.error(str(error))
        code = 1
    return _check_nothing_left(footprint, progress) or code


@contextmanager
def _admin_door(cluster: Cluster, told_down: threading.Event) -> Iterator[str]:
    """Open the admin door, and let this user's other commands know where it is."""
    admin, key = cluster.config.admin, secrets.token_hex(16)
    tls = (admin.tls_cert_file, admin.tls_key_file) if admin.tls_cert_file else None
    with served(make_admin_app(cluster, key, told_down.set), admin.host, admin.port, tls) as url:
        me = psutil.Process()
        running = Running(
            name=cluster.config.name,
            admin_url=url,
            admin_key=key,
            admin_cert=str(Path(admin.tls_cert_file).absolute()) if tls else "",
            pid=me.pid,
            created_at_s=me.create_time(),
        )
        path = RunningFiles(os.environ).write(running)
        try:
            yield f"{url}, its key in {path}"
        finally:
            path.unlink(missing_ok=True)


def _ask(options: UpOptions, config: ClusterConfig, status: ClusterStatus, progress: Progress) -> None:
    progress.line()
    doors, key = config.router.options, os.environ.get(KEY_VARIABLE, "")
    if doors.get("api_keys_file") and not key:
        progress.line(f"The doors want a key; with one in {KEY_VARIABLE} a question would be asked here.")
        return
    progress.line(f"> {options.prompt}")
    body = chat_body(config.served_model, options.prompt, options.max_tokens)
    verify = pinned(doors["tls_cert_file"]) if doors.get("tls_cert_file") else True
    answer = ask(_base_url(status), body, lambda text: print(text, end="", flush=True), key, verify)
    progress.line("\n")
    for line in summary(answer):
        progress.line(line)


def _base_url(status: ClusterStatus) -> str:
    return door_url(status.of(Kind.ROUTER)[0].said)


def _explain(config: ClusterConfig, status: ClusterStatus, progress: Progress) -> None:
    """How to go on from here."""
    body = {"model": config.served_model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    progress.line()
    for router in status.of(Kind.ROUTER):
        url = door_url(router.said)
        progress.line(f"HTTP     {url}/v1   (OpenAI-compatible)")
        progress.line(f"gRPC     {router.said['grpc_address']}   (diptych.v1.Inference, reflection)")
        progress.line(f"metrics  {url}/metrics")
    doors = config.router.options
    # On this machine, by an address that the certificate need not name.
    trust = " --insecure" if doors.get("tls_cert_file") else ""
    show = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if doors.get("api_keys_file") else ""
    progress.line(f"try      curl -N{trust}{show} {_base_url(status)}/v1/chat/completions \\")
    progress.line("              -H 'Content-Type: application/json' \\")
    progress.line(f"              -d {shlex.quote(msgspec.json.encode(body).decode())}")
    progress.line("operate  diptych status | scale prefill=2 | drain WORKER | role WORKER decode | down")
    progress.line()


def _watch(cluster: Cluster, status: ClusterStatus, told_down: threading.Event, progress: Progress) -> None:
    """Stay, and say what dies and what replaces it, until told to stop.

    Raises:
        Told: by a signal.
        ClusterError: the controller is gone for good.
    """
    progress.line("Ctrl-C stops everything.")
    seen = {process.id for process in status.processes}
    crashes, controller_pid = status.crashes, status.controller_pid
    try:
        while not told_down.wait(WATCH_INTERVAL_S):
            status = _status(cluster, controller_pid, progress)
            if status.controller_pid != controller_pid:
                progress.step("ray", f"the controller was started again (pid {status.controller_pid})")
                controller_pid, crashes = status.controller_pid, []
            for crash in [crash for crash in status.crashes if crash not in crashes]:
                progress.step("died", describe_crash(crash))
            crashes = status.crashes
            for process in status.processes:
                if process.state is State.RUNNING and process.id not in seen:
                    seen.add(process.id)
                    progress.step(process.kind, f"{process.name} runs (pid {process.pid})")
    except Told:
        progress.step("stop", "stopping")
        raise


def _status(cluster: Cluster, controller_pid: int, progress: Progress) -> ClusterStatus:
    """The status; a controller that does not give it is replaced, once.

    Raises:
        ClusterError: the next one does not either.
    """
    try:
        return cluster.status(HANG_S)
    except ClusterError as error:
        progress.step("ray", f"{error}: it is killed, another takes over")
        cluster.end_controller(controller_pid)
        return cluster.status()


def _check_nothing_left(footprint: Footprint, progress: Progress) -> int:
    """Returns the exit code: what outlived the orderly stop is removed, and is a failure."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while (remaining := footprint.remaining()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if remaining:
        progress.error("left behind, now removed: " + ", ".join(remaining))
        footprint.remove()
        return 1
    progress.step("stop", "done, nothing is left behind")
    return 0
