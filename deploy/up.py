"""`diptych up`: starts everything in order, shows that it works, stays, and stops everything in the reverse order.

model ─► Valkey ─► Ray ─► controller ─► prefill, decode, router ─► a canary ─► one question
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from deploy.ask import AskError, ask, chat_body, summary
from deploy.cluster import Cluster, ClusterError, base_url, describe_crash, name_of
from deploy.cluster_config import NODE_HOST, ClusterConfig
from deploy.controller import ClusterStatus
from deploy.embedded_valkey import EmbeddedValkey, ValkeyError
from deploy.leftovers import Footprint
from deploy.model_store import ModelError, resolve_model
from deploy.progress import Progress
from deploy.ray_runtime import RayUnavailable, existing_ray, num_nodes, private_ray
from deploy.reconcile import State
from deploy.run_folder import log_folder
from deploy.supervise import Told, stop_listening
from diptych.model_folder import ModelFolder

WATCH_INTERVAL_S = 1.0
GONE_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What the command line says, less what goes into `ClusterConfig` unchanged."""

    model: str
    redis_url: str  # empty: an embedded Valkey
    ray_address: str  # empty: a Ray of our own
    prompt: str
    max_tokens: int
    once: bool
    start_timeout_s: float
    cluster: dict[str, object]  # fields of ClusterConfig


def up(options: UpOptions, folder: Path, progress: Progress) -> int:
    """Run a cluster until told to stop; returns the exit code.

    Args:
        folder: of this run, removed by the caller.
    """
    footprint = Footprint(ignored=folder)
    code, running = 0, False
    try:
        with ExitStack() as stack:
            config = _prepare(options, folder, stack, progress)
            cluster = stack.enter_context(Cluster(config))
            stack.callback(footprint.add_descendants, psutil.Process())  # before anything is stopped
            status = cluster.wait_until_ready(options.start_timeout_s, progress)
            progress.step("ready", "a canary went end to end")
            _ask(options, config, progress)
            _explain(cluster, config, status, progress)
            running = True
            if not options.once:
                _watch(cluster, status, progress)
            stop_listening()
            progress.step("stop", "stopping")
    except Told as told:
        code = 0 if running else told.exit_code
    except (ModelError, ValkeyError, RayUnavailable, ClusterError, AskError, ValueError, OSError) as error:
        progress.error(str(error))
        code = 1
    return _check_nothing_left(footprint, progress) or code


def _prepare(options: UpOptions, folder: Path, stack: ExitStack, progress: Progress) -> ClusterConfig:
    """Everything that comes before our own processes, cheapest and most likely to fail first."""
    logs = log_folder(os.environ)
    config = ClusterConfig(model=options.model, log_folder=str(logs), **options.cluster)  # type: ignore[arg-type]
    check_port_free(config.host, config.http_port)
    if config.grpc_port:
        check_port_free(config.host, config.grpc_port)
    model = resolve_model(options.model, os.environ, lambda text: progress.step("model", text))
    _check_model(model)
    progress.step("model", str(model))
    served = config.served_model or model.name

    redis_url = options.redis_url
    if not redis_url:
        valkey = stack.enter_context(EmbeddedValkey(folder))
        redis_url = valkey.url
        progress.step("valkey", f"embedded, at {valkey.address}")
    if options.ray_address:
        stack.enter_context(existing_ray(options.ray_address))
        if num_nodes() > 1 and not options.redis_url:
            raise ValueError("a Ray cluster of several machines needs a Redis that all of them reach: give --redis-url")
        progress.step("ray", f"existing, at {options.ray_address}")
    else:
        stack.enter_context(private_ray(folder, num_cpus=(os.cpu_count() or 1) if config.num_cpus else 0))
        progress.step("ray", "started for this cluster, on loopback")
    progress.step("logs", str(logs))
    return msgspec.structs.replace(
        config,
        model=str(model),
        served_model=served,
        redis_url=redis_url,
        worker_host=NODE_HOST if options.ray_address else config.worker_host,
        door_node_id=_node_id(),
    )


def check_port_free(host: str, port: int) -> None:
    """
    Raises:
        OSError: somebody listens there already, or it may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port} ({error.strerror}); choose another port") from error


def _check_model(path: Path) -> None:
    """What every process would find out later, and each in its own log.

    Raises:
        ValueError: a file is missing, malformed or of a kind that can run code.
    """
    folder = ModelFolder(path)
    folder.weight_files()
    folder.tokenizer_path.stat()


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _ask(options: UpOptions, config: ClusterConfig, progress: Progress) -> None:
    progress.line()
    progress.line(f"> {options.prompt}")
    body = chat_body(config.served_model, options.prompt, options.max_tokens)
    answer = ask(base_url(config), body, lambda text: print(text, end="", flush=True))
    progress.line("\n")
    for line in summary(answer):
        progress.line(line)


def _explain(cluster: Cluster, config: ClusterConfig, status: ClusterStatus, progress: Progress) -> None:
    """How to go on from here."""
    url = base_url(config)
    body = {"model": config.served_model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
    progress.line()
    progress.line(f"HTTP     {url}/v1   (OpenAI-compatible)")
    progress.line(f"gRPC     {cluster.router(status)['grpc_address']}   (diptych.v1.Inference, reflection)")
    progress.line(f"metrics  {url}/metrics")
    progress.line(f"try      curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\")
    progress.line(f"              -d {shlex.quote(msgspec.json.encode(body).decode())}")
    progress.line()


def _watch(cluster: Cluster, status: ClusterStatus, progress: Progress) -> None:
    """Stay, and say what dies and what replaces it, until told to stop.

    Raises:
        Told: by a signal.
        ClusterError: the controller is gone.
    """
    progress.line("Ctrl-C stops everything.")
    seen = {process.log_path for process in status.processes}
    num_crashes = len(status.crashes)
    try:
        while True:
            time.sleep(WATCH_INTERVAL_S)
            status = cluster.status()
            for crash in status.crashes[num_crashes:]:
                progress.step("died", describe_crash(crash))
            num_crashes = len(status.crashes)
            for process in status.processes:
                if process.state is State.RUNNING and process.log_path not in seen:
                    seen.add(process.log_path)
                    progress.step(process.kind, f"{name_of(process)} runs (pid {process.pid})")
    except Told:
        progress.step("stop", "stopping")
        raise


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
