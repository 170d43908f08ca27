"""The tables of an experiment's file, but for the sweep: what is started, what is sent, what counts as good."""

from __future__ import annotations

import string
from typing import Any, Literal

import msgspec

from diptych.config import RouterConfig, WorkerConfig
from loadgen.client.config import Endpoint, PromptForm

SHAPED = {"max_batch_tokens", "policy", "remote_prefill"}  # are said by the sweep
DECIDED = {"role", "model", "cluster", "redis_url", "threads"} | SHAPED


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `diptych up` is started with, apart from what the sweep varies. Not read with backend "running"."""

    model: str = "smollm2-135m-instruct"  # as `diptych up` takes it
    cores_per_worker: int = 1  # threads of every worker, so that cells with as many workers use the same hardware
    options: dict[str, Any] = {}  # fields that all processes share
    worker_options: dict[str, Any] = {}  # fields of WorkerConfig
    router_options: dict[str, Any] = {}  # fields of RouterConfig
    num_cpus: float = 0.0  # that Ray books for a worker
    num_gpus: float = 0.0
    ray_address: str = ""  # an existing Ray cluster; empty: a private one
    redis_url: str = ""

    def __post_init__(self) -> None:
        if self.cores_per_worker < 1:
            raise ValueError(f"cores_per_worker is {self.cores_per_worker}; every worker has at least 1")
        for table, kind in (("worker_options", WorkerConfig), ("router_options", RouterConfig)):
            known = set(kind.__struct_fields__) - DECIDED
            for name in getattr(self, table):
                if name in SHAPED:
                    raise ValueError(f"{table}.{name}: this is an axis; write it in [sweep], as a list")
                if name not in known:
                    raise ValueError(f"{table} has no {name!r}; it has {', '.join(sorted(known))}")

    def described(self) -> dict[str, Any]:
        """As `diptych up --config` takes it."""
        booked = {name: value for name in ("num_cpus", "num_gpus") if (value := getattr(self, name))}
        pool = {**booked, "options": {"threads": self.cores_per_worker, **self.worker_options}}
        top = {"model": self.model} | ({"redis_url": self.redis_url} if self.redis_url else {})
        return {
            **top,
            "options": self.options,
            "prefill": pool,
            "decode": pool,
            "router": {"options": self.router_options},
        }


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is sent. Axes of the sweep stand in braces."""

    what: str = "independent:input={input_tokens},output={output_tokens}"  # as --workload of `loadgen run`
    endpoint: Endpoint = "completions"
    prompt: PromptForm = "ids"
    vocabulary_size: int = 32_000
    max_input: int | None = None
    max_output: int | None = None
    tokenizer: str = ""
    continuous_usage: bool = True  # every event says its tokens: gaps are between tokens, as those in virtual time are
    extra_body: dict[str, Any] = msgspec.field(default_factory=lambda: {"return_report": True})  # Diptych says costs

    @property
    def names(self) -> set[str]:
        """The axes that it uses."""
        return {name for _, name, _, _ in string.Formatter().parse(self.what) if name is not None}


class ArrivalsSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When it is sent. A run ends after `duration_s` or `requests`, whichever comes first; with `min_requests` it sends
    as many as `duration_s` has on average, and at least so many."""

    spacing: Literal["poisson", "gamma", "constant"] = "poisson"
    burstiness: float = 1.0
    jitter_ms: float = 0.0  # of a trace's own times
    duration_s: float | None = None
    requests: int | None = None
    min_requests: int | None = None  # of an open loop, where low rates would leave short runs empty
    warmup_s: float = 0.0
    tail_s: float = 0.0
    settle_requests: int = 2  # for each worker, sent and forgotten when a shape is new: nothing is measured cold
    timeout_s: float = 600.0
    processes: int = 1
    lag_limit_ms: float = 10.0

    def __post_init__(self) -> None:
        if self.duration_s is None and self.requests is None:
            raise ValueError("say how long a run is: duration_s, requests, or both")
        if self.min_requests is not None and (self.duration_s is None or self.requests is not None):
            raise ValueError("min_requests goes with duration_s, and in place of requests")


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ttft_ms: float = 1_000.0
    tpot_ms: float = 50.0
    attainment: float = 0.9  # share of the requests within both, for a rate to count as sustained

    def __post_init__(self) -> None:
        if min(self.ttft_ms, self.tpot_ms) <= 0 or not 0 < self.attainment <= 1:
            raise ValueError("limits are above 0 ms, and attainment is above 0 and at most 1")


class SimSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Step times of simulated workers: a fit of the tables, or closed forms measured here."""

    model: str = "nvidia/Llama-3.1-70B-Instruct-FP8"
    gpu: str = "h100_sxm"
    tensor_parallel: int = 4
    fitted: dict[str, float] = {}  # fields of `FittedTiming`, in place of model and gpu's step times
    kv_bytes_per_token: int = 0  # 0: the model's of the tables
    kv_cache_bytes: int = 0  # of a worker; 0: what fits beside the model's weights
    block_size: int = 16
    max_running: int = 64
    wire_bytes_per_s: float = 0.0  # of a worker, each way; 0: one 400 Gb/s port
    hop_ms: float = 0.5  # router to worker and back, each way
