"""One flat, typed configuration per process, checked when it is made.

Processes receive theirs as JSON from whoever starts them (`deploy`), never from the environment in the middle of the
code. What an operator may set is here, with its name, default and unit; constants of one protocol stand beside it.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from diptych.messages import Role

WeightForm = Literal["full", "int8"]  # in which weights are kept and computed with
EngineName = Literal["torch", "sim"]  # what computes; "sim" only takes as long (docs/simulated-engine.md)
MIN_CELL_BYTES = 16  # a link of the simulated engine's hash chain


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prefill or decode worker."""

    role: Role
    model: str  # folder with config.json, *.safetensors, tokenizer.json
    served_model: str = ""  # the name clients use; the folder's name when empty
    cluster: str = "diptych"  # prefix of every Redis key
    redis_url: str = "redis://127.0.0.1:6379/0"
    host: str = "127.0.0.1"
    port: int = 0  # gRPC; 0 picks a free one
    device: str = "cpu"
    dtype: str = "float32"  # of weights and KV
    weights: WeightForm = "full"  # "int8" (on CPU): a quarter of the bytes, served only if text is predicted as well
    block_size: int = 16  # tokens a KV block
    kv_cache_bytes: int = 1 << 30
    max_batch_tokens: int = 512  # tokens one engine step computes; also the longest prefill chunk
    max_running: int = 64  # sequences in one step
    speculative_tokens: int = 0  # guesses a sequence in one step, from its own text (docs/decisions/020); 0: off
    speculative_ngram_min: int = 2  # tokens that must match an earlier place for its continuation to be a guess
    speculative_ngram_max: int = 4  # longest match that is looked for first
    threads: int = 1  # of torch, per worker
    lease_ms: int = 5_000  # membership; renewed every fifth of it
    stats_interval_ms: int = 100
    drain_timeout_s: float = 30.0
    quarantine_patience_s: float = 20.0  # with over half of its blocks quarantined; then decode asks to be replaced
    transports: tuple[str, ...] = ("tcp", "sm", "self")  # of UCX; leave out "sm" between hosts or network namespaces
    interfaces: str = ""  # of UCX, e.g. "eth0"; empty: loopback if `host` is loopback, else UCX chooses
    cluster_cert_file: str = ""  # PEM, of TLS between the cluster's processes; all three or none (docs/operations.md)
    cluster_key_file: str = ""
    cluster_ca_file: str = ""
    verify_checksums: float = 1.0  # the share of pushed blocks that is checksummed, 0 to 1; the same on all workers
    otlp_endpoint: str = ""  # empty: tracing off
    engine: EngineName = "torch"  # "sim": no weights, no text that means anything, steps of a modelled length
    sim_timing: str = "fixed:prefill_ms=50,decode_ms=10"  # or fit:MODEL/GPU, measured:FILE (diptych.engine.sim)
    sim_speedup: float = 1.0  # divides all modelled times
    sim_cell_bytes: int = 64  # memory of a simulated token's KV; 0: what the model's KV takes
    sim_kv_tokens: int = 0  # that a simulated cache holds; 0: by kv_cache_bytes of the model's KV, or by the fit's GPU

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size} tokens; it must be at least 1")
        if self.kv_cache_bytes < 1:
            raise ValueError(f"kv_cache_bytes is {self.kv_cache_bytes}; give at least one block's worth")
        if self.max_batch_tokens < 1 or self.max_running < 1:
            raise ValueError("max_batch_tokens and max_running must be at least 1")
        if self.speculative_tokens < 0:
            raise ValueError(f"speculative_tokens is {self.speculative_tokens}; it must be at least 0 (off)")
        if not 1 <= self.speculative_ngram_min <= self.speculative_ngram_max:
            raise ValueError("speculative_ngram_min must be at least 1 and at most speculative_ngram_max")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; it must be at least 1")
        if not 0.0 <= self.verify_checksums <= 1.0:
            raise ValueError(f"verify_checksums is {self.verify_checksums}; it is a share, 0 (none) to 1 (every block)")
        _check_engine(self)
        if self.engine == "sim" and self.device != "cpu":
            raise ValueError(f"device is {self.device!r}; a simulated engine runs on cpu")
        if not self.sim_speedup > 0 or self.sim_kv_tokens < 0:
            raise ValueError("sim_speedup must be above 0, sim_kv_tokens not below")
        _check_together(self, "cluster_cert_file", "cluster_key_file", "cluster_ca_file")
        _check_weights(self.weights)


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A router: the HTTP and gRPC doors."""

    model: str  # the workers' folder, or a copy; of the weights only headers and samples are read
    served_model: str = ""
    cluster: str = "diptych"
    redis_url: str = "redis://127.0.0.1:6379/0"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 0  # 0 picks a free one
    block_size: int = 16  # tokens; must equal the workers'
    dtype: str = "float32"  # likewise
    weights: WeightForm = "full"  # likewise: all three are part of the fingerprint
    policy: str = "min-ttft"  # of placement: one of `router.placement.named.POLICIES`, or your own as "module:Class"
    remote_prefill: str = "auto"  # "auto": by estimated ms; "prefer": where it can; "always" / "never": for experiments
    explain_ring: int = 1_024  # placements that GET /explain remembers; 0: none
    shared_reserve: bool = True  # routers of a cluster see each other's placements at once; off: by workers' reports
    api_keys_file: str = ""  # of clients, as `router.keys` says; empty: everybody who reaches the doors may use them
    tls_cert_file: str = ""  # PEM, of the HTTP and gRPC doors; with its key, or neither
    tls_key_file: str = ""
    cluster_cert_file: str = ""  # PEM, of TLS to the workers; made like theirs
    cluster_key_file: str = ""
    cluster_ca_file: str = ""
    admin_host: str = "127.0.0.1"  # of the admin door, which has no authentication
    admin_port: int = 0  # 0 picks a free one
    request_deadline_ms: int = 600_000
    reserve_timeout_ms: int = 30_000  # longest wait for decode blocks before 503
    max_body_bytes: int = 8 << 20
    max_choices: int = 16  # n
    max_attempts: int = 3  # of one request; after the last failure the client gets the error
    silence_ms: int = 3_000  # without a frame, of which a worker sends at least one a second; then it is lost
    max_in_flight: int = 1_024  # requests on workers at one time, per router; others wait in its queue
    max_queued: int = 1_024  # requests that wait in one router before 503; 0: nobody waits
    max_worker_queue_ms: int = 100  # prompt work a worker may have before it, if that is more than two full steps
    ttft_limit_ms: int = 0  # of requests that name none: refused when the first token cannot come so soon; 0: none
    canary_interval_s: float = 10.0  # idle time after which a canary goes end to end; 0: only until the first success
    membership_poll_ms: int = 250
    lease_ms: int = 5_000  # the workers'
    otlp_endpoint: str = ""
    engine: EngineName = "torch"  # the workers'
    sim_cell_bytes: int = 64  # likewise: both are part of the fingerprint

    def __post_init__(self) -> None:
        if self.remote_prefill not in ("auto", "prefer", "always", "never"):
            raise ValueError(f"remote_prefill is {self.remote_prefill!r}; it is one of auto, prefer, always, never")
        if self.explain_ring < 0:
            raise ValueError(f"explain_ring is {self.explain_ring} placements; it must be at least 0 (off)")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; it must be at least 1 (no retry)")
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight is {self.max_in_flight} requests; it must be at least 1")
        for name in ("max_queued", "max_worker_queue_ms", "ttft_limit_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("http_port", "grpc_port", "admin_port"):
            if not 0 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} is {getattr(self, name)}; a port is 0 to 65535")
        _check_engine(self)
        _check_together(self, "cluster_cert_file", "cluster_key_file", "cluster_ca_file")
        _check_together(self, "tls_cert_file", "tls_key_file")
        _check_weights(self.weights)


def _check_weights(weights: str) -> None:
    if weights not in get_args(WeightForm):
        raise ValueError(f"weights is {weights!r}; it is one of {', '.join(get_args(WeightForm))}")


def _check_engine(config: WorkerConfig | RouterConfig) -> None:
    if config.engine not in get_args(EngineName):
        raise ValueError(f"engine is {config.engine!r}; it is one of {', '.join(get_args(EngineName))}")
    if config.sim_cell_bytes and config.sim_cell_bytes < MIN_CELL_BYTES:
        raise ValueError(f"sim_cell_bytes is {config.sim_cell_bytes}; at least {MIN_CELL_BYTES}, or 0: the model's own")


def _check_together(config: WorkerConfig | RouterConfig, *names: str) -> None:
    missing = [name for name in names if not getattr(config, name)]
    if missing and len(missing) < len(names):
        raise ValueError(f"{', '.join(names)} belong together; {' and '.join(missing)} missing")
