"""One cluster as the user asks for it, and the configuration each of its processes gets from that.

Everything a process knows is in its own configuration (`diptych.config`); nothing is inherited or read elsewhere.
"""

from __future__ import annotations

import os

import msgspec

from deploy.reconcile import Kind
from diptych.config import RouterConfig, WorkerConfig
from diptych.messages import Role

NODE_HOST = "node"  # stands for the address of the Ray node a process lands on


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole cluster."""

    model: str  # model folder, at the same path on every node
    served_model: str = ""
    cluster: str = "diptych"  # prefix of every Redis key
    prefill: int = 1  # workers
    decode: int = 1  # workers
    host: str = "127.0.0.1"  # where the doors listen
    http_port: int = 8000
    grpc_port: int = 0  # 0 picks a free one
    redis_url: str = "redis://127.0.0.1:6379/0"
    worker_host: str = "127.0.0.1"  # where workers listen; `NODE_HOST`: the address of their Ray node
    kv_cache_bytes: int = 512 << 20  # per worker
    block_size: int = 16  # tokens a KV block
    threads: int = 0  # of torch, per worker; 0 divides the processors among the workers
    remote_prefill: str = "auto"
    canary_interval_s: float = 10.0
    drain_timeout_s: float = 30.0
    otlp_endpoint: str = ""
    log_folder: str  # one file per process
    num_cpus: float = 0.0  # what Ray books per worker; 0 lets a laptop hold them all
    num_gpus: float = 0.0
    door_node_id: str = ""  # the Ray node where the router has to run; empty: any

    def __post_init__(self) -> None:
        if self.decode < 1:
            raise ValueError(f"decode is {self.decode}; a cluster needs at least one decode worker")
        if self.prefill < 0:
            raise ValueError(f"prefill is {self.prefill}; it cannot be negative")
        self.worker(Role.DECODE)  # refuses what a worker would refuse, before anything starts
        self.router()

    def wanted(self) -> dict[Kind, int]:
        return {Kind.PREFILL: self.prefill, Kind.DECODE: self.decode, Kind.ROUTER: 1}

    def process(self, kind: Kind) -> WorkerConfig | RouterConfig:
        """The configuration of one process of this kind."""
        return self.router() if kind is Kind.ROUTER else self.worker(Role(kind))

    def worker(self, role: Role) -> WorkerConfig:
        return WorkerConfig(
            role=role,
            model=self.model,
            served_model=self.served_model,
            cluster=self.cluster,
            redis_url=self.redis_url,
            host=self.worker_host,
            device="cuda" if self.num_gpus else "cpu",
            dtype=self.dtype,
            block_size=self.block_size,
            kv_cache_bytes=self.kv_cache_bytes,
            threads=self.worker_threads(),
            drain_timeout_s=self.drain_timeout_s,
            otlp_endpoint=self.otlp_endpoint,
        )

    def router(self) -> RouterConfig:
        return RouterConfig(
            model=self.model,
            served_model=self.served_model,
            cluster=self.cluster,
            redis_url=self.redis_url,
            host=self.host,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            block_size=self.block_size,
            dtype=self.dtype,
            remote_prefill=self.remote_prefill,
            canary_interval_s=self.canary_interval_s,
            otlp_endpoint=self.otlp_endpoint,
        )

    @property
    def dtype(self) -> str:
        """What the engine computes in on the workers' device."""
        return "bfloat16" if self.num_gpus else "float32"

    def worker_threads(self) -> int:
        if self.threads:
            return self.threads
        return max(1, len(os.sched_getaffinity(0)) // max(1, self.prefill + self.decode))


def config_type(kind: Kind) -> type[WorkerConfig] | type[RouterConfig]:
    return RouterConfig if kind is Kind.ROUTER else WorkerConfig
