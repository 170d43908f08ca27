"""What one measured run is, flat and typed: what every process of it is given as JSON, and what a result keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from loadgen.arrivals import Arrivals, ClosedLoop

Endpoint = Literal["completions", "chat"]
PromptForm = Literal["ids", "text"]
LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")  # of a request
ENDS_EARLIER = ("stop", "stop_token_ids")


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base_url: str  # scheme and host, and a path if the server has one before /v1
    model: str
    workload: str  # see loadgen.workloads.spec
    arrivals: Arrivals
    name: str = ""  # of the configuration that is measured; runs with one name are repeats of each other
    endpoint: Endpoint = "completions"
    prompt: PromptForm = "ids"  # "text" where a server takes no token ids; chat always is text
    vocabulary_size: int = 32_000  # token ids of prompts are from 256 up to this
    num_requests: int | None = None
    duration_s: float | None = None  # of sending; answers are waited for
    warmup_s: float = 0.0  # sent before, not measured
    tail_s: float = 0.0  # sent after, not measured
    seed: int = 0  # of arrivals and lengths
    salt: int = 0  # of prompts, with the seed: with another one, nothing of an earlier run is in the server's cache
    max_input: int | None = None  # tokens; longer prompts lose their end
    max_output: int | None = None
    tokenizer: str = ""  # to count the texts of ShareGPT
    ignore_eos: bool = True  # every answer has its planned length; needs a server that knows the field
    continuous_usage: bool = False  # ask for token counts in every event, where one may hold several tokens
    extra_body: dict[str, Any] = {}  # fields of every request; null takes one away
    timeout_s: float = 600.0  # of one request
    processes: int = 1
    ttft_limit_ms: float = 1_000.0  # of goodput
    tpot_limit_ms: float = 50.0
    lag_limit_ms: float = 10.0  # 99 % of requests must be sent this close to their time, or the run is invalid

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the server's address is {self.base_url!r}; write http://host:port")
        for name in ("num_requests", "duration_s", "max_input", "max_output"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if isinstance(self.arrivals, ClosedLoop) and self.processes > self.arrivals.concurrency:
            raise ValueError(
                f"{self.processes} processes for {self.arrivals.concurrency} requests at a time: some would have none "
                "to send; give it no more processes than concurrency"
            )
        if self.processes < 1 or self.timeout_s <= 0 or self.warmup_s < 0 or self.tail_s < 0:
            raise ValueError("processes and timeout_s must be above 0, warmup_s and tail_s not below")
        if min(self.ttft_limit_ms, self.tpot_limit_ms, self.lag_limit_ms) <= 0:
            raise ValueError("limits must be above 0 ms")
        if self.vocabulary_size < 2:
            raise ValueError(f"vocabulary_size is {self.vocabulary_size}; there are at least 2 tokens")

    @property
    def path(self) -> str:
        route = "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"
        return urlsplit(self.base_url).path.rstrip("/").removesuffix("/v1") + route

    @property
    def exact_length(self) -> bool:
        """An answer has to be as long as its request allows."""
        extra = self.extra_body
        ignored = self.ignore_eos and bool(extra.get("ignore_eos", True))
        return ignored and not any(extra.get(name) for name in ENDS_EARLIER)

    def max_tokens(self, planned_output: int) -> int:
        """That a request allows its answer; 0 where it says nothing about it."""
        limits = {"max_tokens": planned_output} | {
            name: self.extra_body[name] for name in LENGTH_FIELDS if name in self.extra_body
        }
        return min((limit for limit in limits.values() if isinstance(limit, int)), default=0)


class ShardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one process of a run is given. Secrets come apart from `run`, which is kept with results."""

    run: RunConfig
    shard: int
    records: str  # file to write, one record a line
    headers: dict[str, str] = {}  # of every request
    ca_file: str = ""  # PEM, of the authorities that an https server is believed by; empty: the system's


class Start(msgspec.Struct, frozen=True):
    """Begin at this time of the machine's monotonic clock, in seconds: one for all processes."""

    at_s: float


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    planned: int
    sent: int = 0
    ended: int = 0
    failures: dict[str, int] = {}  # by kind, see `loadgen.client.answer`

    def __add__(self, other: Progress) -> Progress:
        return Progress(
            planned=self.planned + other.planned,
            sent=self.sent + other.sent,
            ended=self.ended + other.ended,
            failures=dict(Counter(self.failures) + Counter(other.failures)),
        )

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(self.failures.items()))
        failed = f"{sum(self.failures.values())} failed" + (f" ({kinds})" if kinds else "")
        return f"{self.sent}/{self.planned} sent, {self.ended} ended, {failed}"


class ShardReport(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """What a process says when it is done."""

    cpu_share: float  # of one core, while it ran
    loop_lag_ms: list[float]  # how late a timer of 20 ms came, each time: while it is late, nothing is read either
    connections: int  # that were opened
    interrupted: bool = False
