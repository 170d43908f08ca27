"""What a simulated cluster is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

from diptych.config import RouterConfig
from diptych.engine.limits import Limits
from diptych.engine.sim.fits import Deployment
from diptych.engine.sim.timing import TimingModel
from loadgen.sim.policy import Policy
from router.admission.ask import AdmissionLimits

DEFAULT_WIRE_BYTES_PER_S = 50e9  # one 400 Gb/s port; aiconfigurator's inter_node_bw of an H100 SXM node, per GPU


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many workers of which kind. Without prefill workers all compute prompts and decode, in chunks."""

    num_prefill: int
    num_decode: int

    def __post_init__(self) -> None:
        if self.num_prefill < 0 or self.num_decode < 1:
            raise ValueError("a fleet has at least one worker that decodes")

    @classmethod
    def parse(cls, text: str) -> Fleet:
        """ "8": eight that do both; "4P+4D": four and four.

        Raises:
            ValueError: it is neither.
        """
        match = re.fullmatch(r"(?:(\d+)P\+(\d+)D|(\d+))", text.strip(), re.IGNORECASE)
        if match is None:
            raise ValueError(f"{text!r} is not a fleet; write 8 for colocated workers or 4P+4D for prefill and decode")
        prefill, decode, both = match.groups()
        return cls(0, int(both)) if both else cls(int(prefill), int(decode))

    def __str__(self) -> str:
        return f"{self.num_prefill}P+{self.num_decode}D" if self.num_prefill else str(self.num_decode)


@dataclass(frozen=True, slots=True)
class SimConfig:
    """One cluster. All workers are alike."""

    fleet: Fleet
    timing: TimingModel
    policy: Policy
    limits: Limits
    num_blocks: int  # KV blocks of a worker
    block_bytes: int
    wire_bytes_per_s: float = DEFAULT_WIRE_BYTES_PER_S  # of a worker, in each direction
    wire_latency_ms: float = 0.05
    hop_ms: float = 0.0  # router to worker and back, each way
    report_interval_ms: float = 1_000.0  # of a worker that only decodes; others report with every step
    reserve_timeout_ms: float = 30_000.0  # longest wait for decode's blocks before a request is refused
    admission: AdmissionLimits | None = None  # of the queue before placement; None: everybody is placed on arrival
    ttft_limit_ms: float = 0.0  # refuse whose first token cannot come so soon; 0: nobody. Needs `admission`
    bulk: bool = True  # take decode steps in runs; the results are the same, only sooner
    content: bool = False  # move and check real KV cells; requests need prompts, and steps are taken one by one


def config_for(
    deployment: Deployment,
    fleet: Fleet,
    policy: Policy,
    *,
    block_size: int = 512,
    max_batch_tokens: int = 8_192,
    max_running: int = 256,
    max_context: int = 1 << 20,
) -> SimConfig:
    """A cluster of engines whose step times and KV sizes the tables know.

    Args:
        max_batch_tokens: 8,192 is what the measurements behind the tables were served with.
    """
    make = partial(SimConfig, fleet, deployment.timing, policy, wire_latency_ms=0.05, hop_ms=0.5)
    return make(
        limits=Limits(max_batch_tokens, max_running, block_size, max_context),
        num_blocks=deployment.kv_tokens // block_size,
        block_bytes=deployment.kv_bytes_per_token * block_size,
    )


QUEUES = ("none", "wait", "refuse")  # what happens before placement; see `with_queue`
_MAY_GO_ALONE = {"min_ttft": "auto", "min_ttft_remote": "always"}  # others place no prompt on decode alone by choice


def remote_prefill_of(policy: str) -> str:
    """What a router with this policy (of `policies`) is told about remote prefill."""
    return _MAY_GO_ALONE.get(policy.replace("-", "_"), "prefer")


def with_queue(config: SimConfig, queue: str, policy: str, ttft_limit_ms: float) -> SimConfig:
    """The same with the router's queue, as a router has it that is told nothing.

    Args:
        queue: "none": all are placed when they come; "wait": they may wait; "refuse": the same, and who cannot have its
            first token within `ttft_limit_ms` is refused.

    Raises:
        ValueError: `queue` is none of these.
    """
    if queue not in QUEUES:
        raise ValueError(f"queue is {queue!r}; it is one of {', '.join(QUEUES)}")
    if queue == "none":
        return config
    told = RouterConfig(model="", remote_prefill=remote_prefill_of(policy))
    limit_ms = ttft_limit_ms if queue == "refuse" else 0.0
    return replace(config, admission=AdmissionLimits.of(told), ttft_limit_ms=limit_ms)
