"""One cluster as the user describes it: a typed file, or flags, or both; every field is checked when it is made.

What each process gets from it is `deploy.process_config`'s. Nothing is inherited or read elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from deploy.autoscale import AutoscaleSettings
from deploy.exposure import check_exposure
from deploy.placing import Strategy
from deploy.process_config import process_config
from deploy.reconcile import Kind
from deploy.wanted import MAXIMUM, POOLS

WORKERS_LOCK = "cluster_cert_file, cluster_key_file and cluster_ca_file under [options], and trusted_kv_network = true"
NODE_HOST = "node"  # stands for the address of the Ray node a process lands on


def _check_number(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; it must be a number, at least 0")


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prefill workers, or the decode workers."""

    count: int = 1
    num_cpus: float = 0.0  # that Ray books per worker; 0 lets a laptop hold them all
    num_gpus: float = 0.0  # likewise; more than 0 also runs the model on a GPU
    resources: dict[str, float] = {}  # custom ones of Ray, per worker
    labels: dict[str, str] = {}  # a worker's node must have them all
    placement: Strategy = "spread"
    options: dict[str, Any] = {}  # fields of `WorkerConfig`

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            _check_number(name, getattr(self, name))
        for name, amount in self.resources.items():
            _check_number(f"resources.{name}", amount)
            if name in ("CPU", "GPU"):
                raise ValueError(f"resources.{name}: use num_{name.lower()}s")

    @property
    def booked(self) -> dict[str, float]:
        """What Ray books for one worker, by Ray's names."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}


class RouterPool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The routers. The second listens on the next ports, and so on; a load balancer in front is the user's."""

    count: int = 1
    host: str = "127.0.0.1"  # where the doors listen
    http_port: int = 8000
    grpc_port: int = 0  # 0 picks a free one
    options: dict[str, Any] = {}  # fields of `RouterConfig`

    def __post_init__(self) -> None:
        for name in ("http_port", "grpc_port"):
            if not 0 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} is {getattr(self, name)}; a port is 0 to 65535")


class Admin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The admin door: `diptych status`, `scale`, `drain`, `role`, `down`."""

    host: str = "127.0.0.1"
    port: int = 0  # 0 picks a free one; the commands of this user on this machine find it
    tls_cert_file: str = ""  # PEM; with its key, or neither
    tls_key_file: str = ""

    def __post_init__(self) -> None:
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file belong together; one is missing")


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds."""

    drain_timeout_s: float = 30.0  # a leaving worker may finish its requests; then routers carry them on elsewhere
    start_timeout_s: float = 180.0  # from Ray's start until a canary went end to end
    suspect_after_s: float = 5.0  # without progress; shown in the status
    replace_after_s: float = 20.0  # likewise; then killed and replaced. Longer than the longest engine step
    orphan_timeout_s: float = 120.0  # processes that no controller has asked after for so long drain and end

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _check_number(name, getattr(self, name))
        if not 0 < self.suspect_after_s <= self.replace_after_s:
            raise ValueError("suspect_after_s must be more than 0 and at most replace_after_s")


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole cluster."""

    model: str  # model folder, at the same path on every node, or the name of the default model
    served_model: str = ""  # the name clients use; the folder's name when empty
    name: str = "diptych"  # prefix of every Redis key; two clusters on one Redis, Ray or account need two
    redis_url: str = ""  # an existing Redis (7 or newer) or Valkey; empty: an embedded one
    prefill: Pool = Pool()
    decode: Pool = Pool()
    router: RouterPool = RouterPool()
    admin: Admin = Admin()
    limits: Limits = Limits()
    autoscale: AutoscaleSettings = AutoscaleSettings()  # how many workers the load needs; off by default
    options: dict[str, Any] = {}  # fields that `WorkerConfig` and `RouterConfig` share, such as block_size and dtype
    surge: bool = True  # start a replacement before its predecessor is drained; false where there is no room for both
    trusted_kv_network: bool = False  # workers of several nodes exchange KV blocks over it, in the clear
    allow_insecure_network: bool = False  # whatever has no lock may listen beyond this machine (deploy/exposure.py)
    # Set by `deploy.up`:
    log_folder: str = ""  # one file per process
    worker_host: str = "127.0.0.1"  # where workers listen; `NODE_HOST`: the address of their Ray node
    door_node_id: str = ""  # the Ray node where routers have to run; empty: any

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty; give a model folder, or the name of the default model")
        if not self.name or any(char.isspace() or char in ":/" for char in self.name):
            raise ValueError(f"name is {self.name!r}; give a word without spaces, colons and slashes")
        if self.decode.count < 1:
            raise ValueError(f"decode.count is {self.decode.count}; a cluster needs at least one decode worker")
        if self.prefill.count < 0:
            raise ValueError(f"prefill.count is {self.prefill.count}; it cannot be negative")
        if self.router.count < 1:
            raise ValueError(f"router.count is {self.router.count}; a cluster needs at least one router")
        self._check_exposure()
        self._check_maximum()
        self._check_bounds()
        for kind in Kind:
            process_config(self, kind, slot=0)  # refuses what a process would refuse, before anything starts

    def _check_exposure(self) -> None:
        doors, admin = self.router.options, self.admin
        locked = bool(doors.get("tls_cert_file") and doors.get("api_keys_file"))
        insecure = self.allow_insecure_network
        lock = "router.options.tls_cert_file, tls_key_file and api_keys_file"
        check_exposure("router.host", self.router.host, allowed=insecure or locked, lock=lock)
        if self.worker_host != NODE_HOST:  # whether the nodes' addresses may be used is seen when they are known
            locked = bool(self.trusted_kv_network and self.options.get("cluster_cert_file"))
            check_exposure("worker_host", self.worker_host, allowed=insecure or locked, lock=WORKERS_LOCK)
        lock = "admin.tls_cert_file and tls_key_file"
        check_exposure("admin.host", admin.host, allowed=insecure or bool(admin.tls_cert_file), lock=lock)

    def _check_maximum(self) -> None:
        """What the controller would refuse later, when nobody is there to read why."""
        said = {f"{kind}.count": count for kind, count in self.counts.items()}
        said |= {f"autoscale.{kind}.max": self.autoscale.bounds(kind).max for kind in POOLS}
        for name, count in said.items():
            if count > MAXIMUM:
                raise ValueError(f"{name} is {count}; a cluster has at most {MAXIMUM} processes of a kind")

    def _check_bounds(self) -> None:
        """A pool that the load decides about begins within its bounds; one of 0 workers stays as it is."""
        for kind in POOLS if self.autoscale.mode == "on" else ():
            count, bounds = self.pool(kind).count, self.autoscale.bounds(kind)
            if count and bounds.clamp(count) != count:
                raise ValueError(f"{kind}.count is {count}; autoscale.{kind} says {bounds.min} to {bounds.max}")

    @property
    def counts(self) -> dict[Kind, int]:
        return {Kind.PREFILL: self.prefill.count, Kind.DECODE: self.decode.count, Kind.ROUTER: self.router.count}

    def pool(self, kind: Kind) -> Pool:
        """Of workers."""
        return self.prefill if kind is Kind.PREFILL else self.decode
