"""What one engine is to the simulator: how long its steps take, and how much KV it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diptych.config import RouterConfig
from diptych.engine.limits import Limits
from diptych.engine.sim.fits import Deployment
from diptych.engine.sim.timing import TimingModel
from diptych.engine.sim.timing_spec import deployment_of, parse_timing, timing_file
from loadgen.sim.config import Fleet, SimConfig
from loadgen.sim.policy import Policy
from router.admission.ask import AdmissionLimits

DEFAULT_TIMING = "fit:Llama-3.1-70B-Instruct-FP8/h100/4"
MAX_CONTEXT = 1 << 20
HOP_MS = 0.5  # where it was not measured


@dataclass(frozen=True, slots=True)
class Engine:
    """
    Attributes:
        name: for people.
        kv_tokens: that fit into one engine.
        wire_bytes_per_s: of one engine, in each direction; 0: a 400 Gb/s port.
        measured_on: seed and salt of the runs that the timing was taken from.
    """

    name: str
    timing: TimingModel
    kv_bytes_per_token: int
    kv_tokens: int
    block_size: int
    max_batch_tokens: int = 8_192
    max_running: int = 256
    hop_ms: float = HOP_MS
    wire_bytes_per_s: float = 0.0
    measured_on: frozenset[str] = frozenset()

    def config(self, fleet: Fleet, policy: Policy, remote_prefill: str = "auto") -> SimConfig:
        """With the router's queue, as every router has it that is told nothing.

        Raises:
            ValueError: not one KV block fits.
        """
        limits = Limits(self.max_batch_tokens, self.max_running, self.block_size, MAX_CONTEXT)
        num_blocks = self.kv_tokens // self.block_size
        if num_blocks < 1:
            raise ValueError(
                f"{self.kv_tokens} KV tokens hold no block of {self.block_size}; give more, or a smaller block"
            )
        block_bytes = self.kv_bytes_per_token * self.block_size
        queue = AdmissionLimits.of(RouterConfig(model="", remote_prefill=remote_prefill))
        made = SimConfig(
            fleet, self.timing, policy, limits, num_blocks, block_bytes, hop_ms=self.hop_ms, admission=queue
        )
        return replace(made, wire_bytes_per_s=self.wire_bytes_per_s) if self.wire_bytes_per_s else made


def engine_of(
    timing: str,
    block_size: int,
    *,
    kv_tokens: int = 0,
    kv_bytes_per_token: int = 0,
    max_batch_tokens: int = 8_192,
    max_running: int = 256,
    hop_ms: float = HOP_MS,
    wire_gb_per_s: float = 0.0,
) -> Engine:
    """
    Args:
        timing: see `diptych.engine.sim.timing_spec`.
        kv_tokens, kv_bytes_per_token: 0: what the tables know, which is only so for `fit:`.

    Raises:
        ValueError: the timing is not known, or the KV's size is not known and not given.
    """
    model, known = parse_timing(timing), deployment_of(timing)
    tokens, per_token = (known.kv_tokens, known.kv_bytes_per_token) if isinstance(known, Deployment) else (0, 0)
    tokens, per_token = kv_tokens or tokens, kv_bytes_per_token or per_token
    if not (tokens and per_token):
        raise ValueError(
            f"timing {timing!r} says nothing of KV: give --kv-tokens (that one worker holds) and --kv-bytes-per-token"
        )
    file = timing_file(timing)
    return Engine(
        name=known.name if known else timing,
        timing=model,
        kv_bytes_per_token=per_token,
        kv_tokens=tokens,
        block_size=block_size,
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        hop_ms=hop_ms,
        wire_bytes_per_s=wire_gb_per_s * 1e9,
        measured_on=frozenset(file.runs if file else ()),
    )


def one_way_ms(timing: str) -> float:
    """Client or router to worker, as it was measured with the timing.

    Raises:
        ValueError: its file cannot be used.
    """
    file = timing_file(timing)
    return HOP_MS if file is None or file.hop_ms is None else file.hop_ms


def largest_block(block_tokens: Sequence[int], wanted: int) -> int:
    """The engine's block for hash ids that stand for so many tokens: `wanted` if it divides them, 0 for theirs.

    Raises:
        ValueError: it does not.
    """
    smallest = min(block_tokens)
    if any(each % (wanted or smallest) for each in block_tokens):
        raise ValueError(f"a KV block of {wanted or smallest} tokens does not divide the trace's {max(block_tokens)}")
    return wanted or smallest
