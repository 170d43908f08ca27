"""What placement is told and what it answers, as frozen structs, in tokens, blocks, milliseconds and bytes/s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log10
from typing import TYPE_CHECKING, NamedTuple

from diptych.messages import LinkStats, Role

if TYPE_CHECKING:
    from router.placement.scene import Considered


class Link(NamedTuple):
    """What a prefill worker has measured of its transfers to one decode worker (as `messages.LinkStats`)."""

    bytes_per_s: float
    latency_ms: float


NO_LINK = Link(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One placeable worker: what it reported, plus what this router has booked on it since.

    Its rates are taken in steps of five per cent: a moving average is not known better, and workers that are alike must
    look alike, or the one that happens to have measured the most gets every prompt nobody has seen.
    """

    worker_id: str
    role: Role
    matched_tokens: int  # of this prompt, by the prefix index; for callers of `place` that give no `matches`
    queued_prefill_tokens: int  # reported or booked, whichever is more: the report lags and the booking is in it
    num_running: int  # sequences, likewise
    available_blocks: int  # free and cached ones as reported, or those not booked, whichever is fewer
    prefill_tokens_per_s: float = 0.0  # 0: not measured yet
    transfer_bytes_per_s: float = 0.0  # over all its links
    links: Mapping[str, Link | LinkStats] = field(default_factory=dict)  # of a prefill worker, by decode worker
    best_link: Link = NO_LINK  # none of them is quicker; see `best_of`
    chunk_tokens: int = 0  # a prompt is computed so many at a time; 0: at once
    decode_base_ms: float = 0.0  # a decode step takes base + num_running x ms_per_sequence; both 0: not measured yet
    decode_ms_per_sequence: float = 0.0
    max_running: int = 0  # sequences in one step at most; 0: not said. For admission: placement does not look at it
    prefill_ms_per_token: float = field(init=False, compare=False, repr=False)  # 0: not measured yet

    def __post_init__(self) -> None:
        rate = self.prefill_tokens_per_s
        for name, value in (
            ("prefill_ms_per_token", coarse(1e3 / rate) if rate > 0 else 0.0),
            ("decode_base_ms", coarse(self.decode_base_ms)),
            ("decode_ms_per_sequence", coarse(self.decode_ms_per_sequence)),
        ):
            object.__setattr__(self, name, value)
        if self.links and self.best_link is NO_LINK:
            object.__setattr__(self, "best_link", best_of(self.links))


@dataclass(frozen=True, slots=True)
class PromptView:
    """What placement needs to know of a request."""

    num_tokens: int
    num_blocks: int  # of the prompt
    block_bytes: int
    force_remote: bool = False  # a canary proves the whole path
    growth_blocks: int = 0  # beyond the prompt's, that its completion is expected to need
    alone: bool = False  # no prefill worker is waited for: the router's queue would last longer than decode needs


Pair = tuple[str, str]  # (prefill id, "" where decode computes the prompt itself; decode id)


@dataclass(frozen=True, slots=True)
class Avoid:
    """Where a request is not placed: it failed there before, or the link between the two is suspect."""

    workers: frozenset[str] = frozenset()
    pairs: frozenset[Pair] = frozenset()

    def __or__(self, other: Avoid) -> Avoid:
        return Avoid(self.workers | other.workers, self.pairs | other.pairs)


NOTHING = Avoid()


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a router has seen of its own requests lately."""

    expected_tokens: float = 1.0  # of a choice's completion
    error: float = 0.1  # by how much predicted times to the first token were wrong; 0.1: a tenth


UNLEARNT = Learnt()


@dataclass(frozen=True, slots=True)
class Placement:
    prefill_id: str  # empty: decode computes the prompt itself
    decode_id: str
    expected_ms: float  # time to first token
    predicted_cached: int  # prompt tokens believed cached where the prompt is computed
    reason: str  # one of `REASONS`
    exposed_ms: float = field(default=0.0, compare=False)  # prefill's last token to decode going on
    matched_tokens: int = field(default=0, compare=False)  # the longest prefix that any worker is believed to hold
    considered: Considered | None = field(default=None, compare=False, repr=False)


REMOTE = "remote"
LOCAL_REASONS = (
    "configured",  # remote_prefill is "never"
    "no_prefill_worker",
    "transfer_suspect",  # every pair has just failed
    "cached_on_decode",  # it has a longer prefix and is sooner
    "prefill_busy",  # it would not be sooner if prefill's queue were empty
    "transfer_outweighs",  # what remains of the prompt is not worth moving
)
REASONS = (REMOTE, *LOCAL_REASONS)


def coarse(value: float) -> float:
    """The nearest of 48 steps a decade, five per cent apart (the E48 series of IEC 60063); 0 stays 0."""
    return 10.0 ** (round(48 * log10(value)) / 48) if value > 0 else 0.0


def rounded(link: Link | LinkStats) -> Link:
    """To steps, as all rates are."""
    return Link(coarse(link.bytes_per_s), coarse(link.latency_ms))


def best_of(links: Mapping[str, Link | LinkStats]) -> Link:
    """The greatest bandwidth and the least latency among them, rounded as they will be."""
    if not links:
        return NO_LINK
    measured = links.values()
    return rounded(Link(max([link.bytes_per_s for link in measured]), min([link.latency_ms for link in measured])))
