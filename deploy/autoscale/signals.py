"""What is known of the pools at one moment, and what is made of it, as frozen structs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deploy.reconcile import Kind
from diptych.messages import WorkerStats


@dataclass(frozen=True, slots=True)
class Report:
    """The latest word of a worker that serves."""

    worker_id: str  # the incarnation: its counters begin at 0
    age_s: float  # since it was last heard of
    stats: WorkerStats | None  # None: never heard of


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool as whoever starts workers sees it."""

    wanted: int
    reports: tuple[Report, ...] = ()  # of every worker that serves
    starting_s: tuple[float, ...] = ()  # for how long those that do not serve yet have been starting
    queued_tokens: float = 0.0  # of prompts that wait for the pool in the routers


@dataclass(frozen=True, slots=True)
class Known:
    """How much of a pool speaks."""

    wanted: int
    ready: int  # that serve
    fresh: int  # of these, that were heard of lately
    starting_s: tuple[float, ...] = ()

    @property
    def silent(self) -> int:
        return self.ready - self.fresh


@dataclass(frozen=True, slots=True)
class PrefillLoad:
    """Of the prefill workers that speak. Tokens are those nobody had cached."""

    queued_tokens: float  # waiting or being computed
    arriving_tokens_per_s: float
    ending_per_s: float  # prompts
    prompt_tokens: float  # of a mean prompt; 0: not known
    tokens_per_s: float  # that one worker computes while it does; 0: not known yet

    @property
    def arriving_per_s(self) -> float:
        """Prompts; 0: not known."""
        return self.arriving_tokens_per_s / self.prompt_tokens if self.prompt_tokens else 0.0

    def grown(self, factor: float) -> PrefillLoad:
        """The same with so many times the arrivals."""
        return replace(self, arriving_tokens_per_s=self.arriving_tokens_per_s * factor)


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """Of the decode workers that speak."""

    running: float  # sequences in a batch, or with blocks and their KV yet to come
    loading: float  # of these, the latter
    waiting: float  # sequences that have waited for blocks or a place since the last look
    arriving_per_s: float  # prompts, at prefill workers; 0: not known, as the next
    ending_per_s: float  # likewise: sequences that come from there
    held_blocks: float  # by requests; what is merely cached is not held
    blocks_per_worker: float  # 0: not known yet
    places_per_worker: float  # sequences that a batch may have; 0: not known
    step_ms: float  # mean over the running sequences; 0: not known yet
    step_base_ms: float  # a step takes base + batch x slope; both 0: not known yet
    step_ms_per_sequence: float
    largest_batch: float  # that was seen
    line_measured: bool = True  # False: only its height is, and half of that is taken to be base

    def line_ms(self, batch: float) -> float:
        """A step of such a batch; 0: not known."""
        return self.step_base_ms + self.step_ms_per_sequence * batch

    def grown(self, factor: float) -> DecodeLoad:
        """The same with so many times the sequences, at the same pace."""
        return replace(
            self,
            running=self.running * factor,
            loading=self.loading * factor,
            waiting=self.waiting * factor,
            arriving_per_s=self.arriving_per_s * factor,
            ending_per_s=self.ending_per_s * factor,
            held_blocks=self.held_blocks * factor,
        )


@dataclass(frozen=True, slots=True)
class Need:
    """How many workers a load takes, and why; `known` False: nobody can say."""

    count: int
    reason: str
    known: bool = True
    urgent: bool = False  # the limit is being missed already


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one pool."""

    now: int  # wanted so far
    wanted: int  # from now on
    needed: int  # by the load alone, within the bounds
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    verdicts: Mapping[Kind, Verdict]

    @property
    def counts(self) -> dict[Kind, int]:
        return {kind: verdict.wanted for kind, verdict in self.verdicts.items()}
