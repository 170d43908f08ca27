"""What comes before our own processes, cheapest and most likely to fail first: ports, model, Valkey, Ray."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from deploy.cluster_config import NODE_HOST, WORKERS_LOCK, ClusterConfig
from deploy.embedded_valkey import EmbeddedValkey
from deploy.exposure import check_exposure
from deploy.model_store import resolve_model
from deploy.process_config import is_simulated
from deploy.progress import Progress
from deploy.ray_runtime import existing_ray, node_addresses, private_ray
from deploy.run_folder import log_folder
from deploy.running import RunningFiles
from deploy.simulated import describe_simulation, with_timing_inlined
from diptych.model_folder import ModelFolder
from kv_transfer.identity import served_name


def prepare(
    config: ClusterConfig, ray_address: str, folder: Path, stack: ExitStack, progress: Progress
) -> ClusterConfig:
    """Check and start it all; returns the description with what had to be found out.

    Args:
        ray_address: of an existing Ray; empty: one of our own.
        folder: of this run.
        stack: ends what was started.

    Raises:
        ModelError, ValkeyError, RayUnavailable, ValueError, OSError: something cannot be used; the message says why.
    """
    config = _with_absolute_files(config)
    _check_name_free(config.name)
    for index in range(config.router.count):
        for port in filter(None, (config.router.http_port, config.router.grpc_port)):
            check_port_free(config.router.host, port + index)
    model = resolve_model(config.model, os.environ, lambda text: progress.step("model", text))
    _check_model(model, weights=not is_simulated(config))
    progress.step("model", str(model))
    if is_simulated(config):
        config = with_timing_inlined(config)
        progress.step("engine", describe_simulation(config))
    redis_url = config.redis_url
    if not redis_url:
        valkey = stack.enter_context(EmbeddedValkey(folder))
        redis_url = valkey.url
        progress.step("valkey", f"embedded, at {valkey.address}")
    if ray_address:
        _join_ray(config, ray_address, stack)
        progress.step("ray", f"existing, at {ray_address}")
    else:
        config = _on_one_node(config)
        books = any(pool.num_cpus for pool in (config.prefill, config.decode))
        stack.enter_context(private_ray(folder, num_cpus=(os.cpu_count() or 1) if books else 0))
        progress.step("ray", "started for this cluster, on loopback")
    logs = log_folder(os.environ)
    progress.step("logs", str(logs))
    return msgspec.structs.replace(
        config,
        model=str(model),
        served_model=served_name(model.name, config.served_model, config.options.get("engine", "")),
        redis_url=redis_url,
        log_folder=str(logs),
        worker_host=NODE_HOST if ray_address else config.worker_host,
        door_node_id=_node_id(),
    )


def _on_one_node(config: ClusterConfig) -> ClusterConfig:
    """A private Ray has one node: there is nothing to choose, and nothing it could lack."""
    pools = {
        name: msgspec.structs.replace(getattr(config, name), resources={}, labels={}) for name in ("prefill", "decode")
    }
    return msgspec.structs.replace(config, **pools)


def _with_absolute_files(config: ClusterConfig) -> ClusterConfig:
    """Names of files are relative to where this command runs; processes run elsewhere."""

    def absolute(options: dict[str, Any]) -> dict[str, Any]:
        return {
            name: str(Path(value).absolute()) if name.endswith("_file") and isinstance(value, str) and value else value
            for name, value in options.items()
        }

    router = msgspec.structs.replace(config.router, options=absolute(config.router.options))
    return msgspec.structs.replace(config, router=router, options=absolute(config.options))


def _join_ray(config: ClusterConfig, address: str, stack: ExitStack) -> None:
    """
    Raises:
        RayUnavailable: there is none, or it does not let us in.
        ValueError: it has nodes that cannot reach what this cluster needs, or that others can reach.
    """
    stack.enter_context(existing_ray(address, config.name))
    addresses = node_addresses()
    if len(addresses) > 1 and not config.redis_url:
        raise ValueError("a Ray cluster of several nodes needs a Redis that all of them reach: give --redis-url")
    locked = bool(config.trusted_kv_network and config.options.get("cluster_cert_file"))
    for address in addresses:
        check_exposure(
            "the address of a Ray node, where workers listen,",
            address,
            allowed=config.allow_insecure_network or locked,
            lock=WORKERS_LOCK,
        )


def _check_name_free(name: str) -> None:
    """
    Raises:
        ValueError: another cluster of this user has it: commands, and Redis if it is one, could not tell them apart.
    """
    for running in RunningFiles(os.environ).alive():
        if running.name == name:
            raise ValueError(
                f"your cluster {name!r} runs on this machine already (process {running.pid}): end it with diptych down "
                f"--cluster {name}, or give this one another name with --cluster"
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


def _check_model(path: Path, *, weights: bool) -> None:
    """What every process would find out later, and each in its own log.

    Raises:
        ValueError: a file is missing, malformed or of a kind that can run code.
    """
    folder = ModelFolder(path)
    if weights:
        folder.weight_files()
    folder.tokenizer_path.stat()


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
