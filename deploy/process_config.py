"""The configuration each process gets from the cluster's, checked by the process' own type.

Options are fields of `WorkerConfig` and `RouterConfig`, so that everything a process can be told can be written in the
cluster's file. What the cluster decides itself, and what every process must agree on, has one place each.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from deploy.exposure import check_exposure, is_loopback
from deploy.reconcile import Kind
from diptych.config import RouterConfig, WorkerConfig

if TYPE_CHECKING:
    from deploy.cluster_config import ClusterConfig, Pool

DEFAULT_KV_CACHE_BYTES = 512 << 20  # a worker

# What the cluster decides: it follows from other fields of its description.
DECIDED = frozenset(
    (
        "role",
        "model",
        "served_model",
        "cluster",
        "redis_url",
        "host",
        "port",
        "http_port",
        "grpc_port",
        "drain_timeout_s",
    )
)
# What every process has to agree on: settings that both kinds know.
SHARED = (frozenset(WorkerConfig.__struct_fields__) & frozenset(RouterConfig.__struct_fields__)) - DECIDED


def config_type(kind: Kind) -> type[WorkerConfig] | type[RouterConfig]:
    return RouterConfig if kind is Kind.ROUTER else WorkerConfig


def process_config(config: ClusterConfig, kind: Kind, slot: int) -> WorkerConfig | RouterConfig:
    """
    Args:
        slot: tells routers apart, from 0; each has ports of its own.

    Raises:
        ValueError: an option is unknown, out of place or wrong; the message names it.
    """
    _check_names(config, kind)
    fields = {
        "model": config.model,
        "served_model": config.served_model,
        "cluster": config.name,
        **({"redis_url": config.redis_url} if config.redis_url else {}),
        "dtype": _dtype(config),
        **config.options,
        **(_of_router(config, slot) if kind is Kind.ROUTER else _of_worker(config, kind)),
    }
    try:
        return msgspec.convert(fields, config_type(kind), strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind}.options: {error}") from None


def is_simulated(config: ClusterConfig) -> bool:
    """Whether its workers run no model."""
    return config.options.get("engine") == "sim"


def worker_threads(config: ClusterConfig, kind: Kind) -> int:
    """Of torch and OpenMP; by default the processors of this machine are divided among all workers."""
    if is_simulated(config):
        return 1
    given = config.pool(kind).options.get("threads") if kind is not Kind.ROUTER else 1
    num_workers = config.prefill.count + config.decode.count
    return given or max(1, len(os.sched_getaffinity(0)) // max(1, num_workers))


def _of_worker(config: ClusterConfig, kind: Kind) -> dict[str, Any]:
    pool = config.pool(kind)
    device = "cpu" if is_simulated(config) else _device(pool)
    defaults = {"kv_cache_bytes": DEFAULT_KV_CACHE_BYTES, "device": device}
    return {
        "role": kind.value,
        "host": config.worker_host,
        "drain_timeout_s": config.limits.drain_timeout_s,
        **defaults,
        **pool.options,
        "threads": worker_threads(config, kind),
    }


def _of_router(config: ClusterConfig, slot: int) -> dict[str, Any]:
    """Every port that was chosen is followed by those of the other routers."""
    router = config.router
    given = {"http_port": router.http_port, "grpc_port": router.grpc_port, **router.options}
    fields = {field.name: field.default for field in msgspec.structs.fields(RouterConfig)}
    ports = {name: given.get(name, fields[name]) for name in fields if name.endswith("_port")}
    shifted = {name: port + slot if isinstance(port, int) and port else port for name, port in ports.items()}
    return {"host": router.host, **given, **shifted}


def _device(pool: Pool) -> str:
    return "cuda" if pool.num_gpus else "cpu"


def _dtype(config: ClusterConfig) -> str:
    """What the engine computes in by default on the workers' device; all workers must use the same."""
    devices = {pool.options.get("device", _device(pool)) for pool in (config.prefill, config.decode)}
    return "float32" if devices == {"cpu"} or is_simulated(config) else "bfloat16"


def _check_names(config: ClusterConfig, kind: Kind) -> None:
    options = config.router.options if kind is Kind.ROUTER else config.pool(kind).options
    for name in config.options:
        if name not in SHARED:
            raise ValueError(f"options.{name}: here are settings of all processes: {', '.join(sorted(SHARED))}")
    for name, value in options.items():
        if name.endswith("host") and isinstance(value, str):
            check_exposure(f"{kind}.options.{name}", value, allowed=config.allow_insecure_network)
        # Of UCX, for the KV blocks: where workers listen on loopback, no other interface may carry them unsaid.
        kv_allowed = config.allow_insecure_network or config.trusted_kv_network
        if name == "interfaces" and value not in ("", "lo") and is_loopback(config.worker_host):
            check_exposure(f"{kind}.options.{name}", str(value), allowed=kv_allowed, lock="trusted_kv_network = true")
        if name in DECIDED:
            raise ValueError(f"{kind}.options.{name}: the cluster decides this; see the fields beside options")
        if name in SHARED:
            raise ValueError(f"{kind}.options.{name}: all processes must agree on it; put it under [options]")
