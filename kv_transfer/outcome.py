"""How transfers ended, and what a worker counted about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from diptych.messages import Delivery
from kv_transfer.incoming import IncomingEnd, Refusal
from kv_transfer.transfer import EndReason


@dataclass(frozen=True, slots=True)
class Pushed:
    """How a push ended; no write of it is in flight any more."""

    end: EndReason
    num_bytes: int = 0
    seconds: float = 0.0  # first write posted to the last one done, waiting for compute included
    refusal: Refusal | None = None  # why REFUSED
    settled: bool = True  # False: a write failed, and bytes of it may still land; decode must not reuse the blocks

    @property
    def handed_over(self) -> bool:
        """Decode goes on with the request, with this KV or by computing the prompt itself."""
        return self.end is EndReason.DELIVERED or (
            self.end is EndReason.REFUSED and self.refusal is not Refusal.UNKNOWN_TRANSFER
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery that was accepted. With `bad_blocks` its KV must not be used."""

    delivery: Delivery
    bad_blocks: tuple[int, ...]  # of this pool, whose bytes do not match their checksums
    num_bytes: int
    transfer_ms: float  # first write posted to verified
    exposed_ms: float  # prefill's last token to verified
    num_checked: int = 0  # blocks that had a checksum


@dataclass(frozen=True, slots=True)
class Missed:
    """A transfer that was expected here and will not be delivered: go on without it."""

    transfer_id: str
    end: IncomingEnd  # REFUSED or PEER_LOST
    refusal: Refusal | None = None  # why REFUSED
    delivery: Delivery | None = None  # the refused one

    @property
    def writes_over(self) -> bool:
        """Nothing of it can land any more. If False, its blocks stay quarantined until the pusher has confirmed it."""
        return self.end is IncomingEnd.PEER_LOST or (self.refusal is not None and self.refusal.writes_over)


@dataclass(slots=True)
class Counters:
    """Since the agent began; numbers are fields of `WorkerStats` with the same names, if they are there."""

    transfers_total: int = 0
    transfers_failed_total: int = 0
    transfer_bytes_total: int = 0
    transfer_seconds_total: float = 0.0
    exposed_transfer_seconds_total: float = 0.0
    transfer_bytes_per_s: float = 0.0  # of writes in flight, averaged over recent pushes
    deliveries_resent_total: int = 0  # no receipt came in time
    blocks_verified_total: int = 0  # received blocks whose checksum was compared
    blocks_verified_early_total: int = 0  # of these, before the delivery
    refused: Counter[Refusal] = field(default_factory=Counter)  # messages
    outgoing: Counter[EndReason] = field(default_factory=Counter)
    incoming: Counter[IncomingEnd] = field(default_factory=Counter)

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
