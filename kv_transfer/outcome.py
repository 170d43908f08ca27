"""How transfers ended, and what a worker counted about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from diptych.messages import Delivery
from kv_transfer.transfer import EndReason, Refusal


@dataclass(frozen=True, slots=True)
class Pushed:
    """How a push ended; nothing of it is in flight any more."""

    end: EndReason
    num_bytes: int = 0
    seconds: float = 0.0  # first write posted to the last one done, waiting for compute included


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery that was accepted. With `bad_blocks` its KV must not be used."""

    delivery: Delivery
    bad_blocks: tuple[int, ...]  # of this pool, whose bytes do not match their checksums
    num_bytes: int
    transfer_ms: float  # first write posted to verified
    exposed_ms: float  # prefill's last token to verified


@dataclass(slots=True)
class Counters:
    """Since the agent began; the fields of `WorkerStats` with the same names."""

    transfers_total: int = 0
    transfers_failed_total: int = 0
    transfer_bytes_total: int = 0
    transfer_seconds_total: float = 0.0
    exposed_transfer_seconds_total: float = 0.0
    transfer_bytes_per_s: float = 0.0  # of writes in flight, averaged over recent pushes
    refused: Counter[Refusal] = field(default_factory=Counter)

    @property
    def transfers_refused_total(self) -> int:
        return self.refused.total()

    def count(self, num_bytes: int, seconds: float, failed: bool) -> None:
        self.transfers_total += 1
        self.transfers_failed_total += failed
        self.transfer_bytes_total += num_bytes
        self.transfer_seconds_total += seconds

    def measure(self, bytes_per_s: float) -> None:
        before = self.transfer_bytes_per_s
        self.transfer_bytes_per_s = 0.8 * before + 0.2 * bytes_per_s if before else bytes_per_s
