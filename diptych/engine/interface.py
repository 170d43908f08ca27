"""The seam between deciding and computing.

The scheduler (pure) makes a `Plan`; a `Runner` (torch, or a simulator) executes it and returns what each row drew.
Neither knows the other's insides, and neither knows about sockets, transfers or routers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Protocol

from diptych.messages import SamplingParams, Slot, TokenLogprob, Update


class Kind(StrEnum):
    """What a worker was asked to do with a request."""

    LOCAL = "local"  # compute the prompt and decode here
    PREFILL = "prefill"  # compute the prompt, draw the first token of each choice, hold the blocks until `release`
    RECEIVE = "receive"  # reserve blocks, wait for `deliver`, then decode


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as an engine sees it."""

    request_id: str
    kind: Kind
    prompt: tuple[int, ...]  # token ids, not empty
    sampling: SamplingParams
    hash_key: bytes  # 32 bytes: keyed by model fingerprint and tenant scope
    first_block: int = 0  # PREFILL: blocks before this one are already at the destination
    priority: int = 0  # higher runs first (see `diptych.engine.sequence.AGING_STEPS`)
    deadline: float = inf  # seconds on the engine's clock
    prompt_hashes: tuple[bytes, ...] | None = None  # of its full blocks; None: the engine computes them


@dataclass(slots=True)
class Row:
    """One sequence's share of a step: compute `tokens` at positions start.., reading and writing its block table."""

    sequence_id: int
    tokens: Sequence[int]
    start: int  # position of tokens[0]; KV of all earlier positions is in the block table
    blocks: Sequence[int]  # block table, long enough for start + len(tokens)
    draws: list[Draw] = field(default_factory=list)  # empty: this chunk does not reach the end of the known tokens
    num_drafted: int = 0  # of `tokens`, the last ones are guesses: each is true only if it is what the draw before says


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw one token from the logits of one of the row's tokens."""

    choice: int
    position: int  # of the drawn token within the completion
    sampling: SamplingParams
    prompt: Sequence[int]  # for penalties
    output: Sequence[int]  # tokens before it in the completion, guesses included, for penalties and min_tokens
    offset: int = -1  # whose logits: an index into the row's tokens; -1 is the last one


@dataclass(frozen=True, slots=True)
class Drawn:
    choice: int
    token_id: int
    logprob: TokenLogprob | None


@dataclass(slots=True)
class Plan:
    """One step: first the copies, then all rows in one forward pass."""

    rows: list[Row]
    copies: list[tuple[int, int]] = field(default_factory=list)  # (source block, destination block)

    @property
    def num_tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


class Runner(Protocol):
    """Computes plans. Owns the KV memory: `num_blocks` blocks of `block_bytes`, contiguous from `pool_address`."""

    num_blocks: int
    block_bytes: int
    pool_address: int

    def execute(self, plan: Plan, kv_written: Callable[[], None] | None = None) -> list[list[Drawn]]:
        """Run one step. Returns, for each row, what was drawn (empty where the row has no draws).

        What would follow a wrong guess may be left out. `kv_written` is called once, on this thread, when the KV of all
        rows is in memory: a push need not wait for what is drawn. A runner that cannot tell may leave it out.
        """
        ...

    def clear_tail(self, block: int, num_tokens: int) -> None:
        """Zero the KV of a block beyond its first `num_tokens` tokens, so that no other request's data is sent."""
        ...


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks granted to a RECEIVE request: prompt blocks `first_block`.. go into `slots`; earlier ones are cached."""

    request_id: str
    first_block: int
    slots: list[Slot]


@dataclass(frozen=True, slots=True)
class ReadyBlocks:
    """KV of a PREFILL request that is final and may be pushed: prompt blocks first_index.. are in `blocks`."""

    request_id: str
    first_index: int
    blocks: list[int]
    last: bool  # the prompt is complete with these; its first tokens are in `first_tokens`
    first_tokens: list[int] = field(default_factory=list)  # one per choice; only with `last`
    finished: bool = False  # every choice ended with its first token: nothing needs to be pushed


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """A change of the prefix cache, for the index."""

    stored: tuple[bytes, ...] = ()  # chain hashes now reusable
    removed: tuple[bytes, ...] = ()  # chain hashes evicted
    cleared: bool = False


@dataclass(slots=True)
class StepOutcome:
    """Everything one step produced, in the order it must be acted on."""

    updates: list[Update] = field(default_factory=list)
    reservations: list[Reservation] = field(default_factory=list)
    ready: list[ReadyBlocks] = field(default_factory=list)
    cache_events: list[CacheEvent] = field(default_factory=list)
    computed_tokens: int = 0  # prompt and output tokens run through the model
    prompt_tokens: int = 0  # prompt tokens among them
    decode_rows: int = 0  # that went on with a completion, with or without guesses

    @property
    def idle(self) -> bool:
        return not (self.updates or self.reservations or self.ready or self.cache_events or self.computed_tokens)
