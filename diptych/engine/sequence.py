"""What the scheduler knows about one request (`Group`) and one of its choices (`Sequence`).

A group starts as one sequence, its root, which computes or receives the prompt for all choices; `choice` is None until
then. Once the first tokens are known the root becomes the first choice that goes on, and the others are forked from it.

Knows nothing about blocks' states, queues or time.
"""

from __future__ import annotations

from collections.abc import Sequence as ReadOnly
from dataclasses import dataclass, field
from enum import Enum, auto
from operator import attrgetter
from typing import NamedTuple

from diptych.engine.interface import Draw, EngineRequest, Row
from diptych.messages import FinishReason, LegStats, SamplingParams

AGING_STEPS = 64  # steps of waiting that weigh as much as one point of priority


class Rank(NamedTuple):
    """Who goes first, for blocks, for places and for the token budget; the worst rank yields. Smaller is better.

    `start` is the step at which the request came, less AGING_STEPS for each point of priority. That is priority with
    linear aging, and it never has to be sorted again: the difference between two requests does not change while both
    age. So a request is overtaken only by those that come within AGING_STEPS x (the difference in priority) steps after
    it, and sooner or later it has the best rank of all, whatever comes.
    """

    start: int  # steps
    arrival: int  # of the request
    sequence_id: int  # of its choices, those with lower ids first


by_rank = attrgetter("rank")


class Stage(Enum):
    """Where a group stands. What its sequences do (wait, run) is the queues' business."""

    ACTIVE = auto()  # to be computed here
    ASKING = auto()  # RECEIVE: waits for blocks
    RESERVED = auto()  # RECEIVE: has blocks, its ticket has not left
    IN_FLIGHT = auto()  # RECEIVE: a peer may be writing
    HELD = auto()  # PREFILL: done, its blocks are being pushed


@dataclass(slots=True, eq=False)
class Group:
    request: EngineRequest
    arrival: int  # orders groups
    stage: Stage
    tick: int = 0  # the step at which it came
    sequences: list[Sequence] = field(default_factory=list)  # those not ended
    first_tokens: list[int] | None = None  # RECEIVE, to be recomputed: drawn elsewhere, already with the client
    num_announced: int = 0  # PREFILL: prompt blocks before this index need no (more) announcement
    first_reserved: int = 0  # RECEIVE: prompt blocks before this index were cached here
    prompt_cached: int | None = None  # tokens; None until it was given its first blocks
    prompt_computed: int = 0  # tokens, until the first update
    prompt_transferred: int = 0  # tokens
    reported: bool = False

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def root(self) -> Sequence:
        """The only sequence of a group whose choices have not started."""
        (root,) = self.sequences
        return root

    def take_stats(self) -> LegStats | None:
        """What the leg cost so far, the first time; then None."""
        if self.reported:
            return None
        self.reported = True
        return LegStats(
            prompt_computed=self.prompt_computed,
            prompt_cached=self.prompt_cached or 0,
            prompt_transferred=self.prompt_transferred,
        )


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens and block table of one choice. KV of the first `num_computed` tokens is in `blocks`."""

    sequence_id: int
    group: Group
    tokens: list[int]  # prompt and output
    hashes: list[bytes]  # chain hashes of the leading full blocks of `tokens`, as far as known
    choice: int | None = None  # None: computes the prompt for all choices
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_indexed: int = 0  # leading blocks that were offered to the prefix cache
    borrows_tail: bool = False  # the last block is still shared; to be copied before this sequence writes
    ended: bool = False
    guess_limit: int = 2  # tokens of the next guess: twice as many as were right of the last one, at least one
    history: bytearray = field(default_factory=bytearray)  # `tokens` as far as `drafts` has read them
    rank: Rank = field(init=False)

    def __post_init__(self) -> None:
        group = self.group
        start = group.tick - AGING_STEPS * group.request.priority
        self.rank = Rank(start, group.arrival, self.sequence_id)

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def decoding(self) -> bool:
        """Only the token drawn last is missing."""
        return self.choice is not None and self.num_computed == len(self.tokens) - 1

    def start(self, choice: int, first_token: int) -> None:
        self.choice = choice
        self.append(first_token)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.output.append(token)

    def forget_blocks(self) -> list[int]:
        """Back to nothing computed. Returns the block table, whose references are now the caller's."""
        blocks, self.blocks = self.blocks, []  # a new list: a running step may still look at the old one
        self.num_computed = self.num_indexed = 0
        self.borrows_tail = False
        return blocks

    def row(self, num_tokens: int) -> Row:
        """The next `num_tokens` tokens as a step's row."""
        end = self.num_computed + num_tokens
        draws = self._draws() if end == len(self.tokens) else []
        return Row(self.sequence_id, self.tokens[self.num_computed : end], self.num_computed, self.blocks, draws)

    def speculate(self, row: Row, guess: list[int]) -> None:
        """Let a row that decodes also compute what may follow, and draw after each of its tokens."""
        sampling, prompt, position = self.group.request.sampling, self.group.request.prompt, len(self.output)
        row.tokens = [*row.tokens, *guess]
        row.num_drafted = len(guess)
        row.draws = [
            Draw(row.draws[0].choice, position + i, sampling, prompt, [*self.output, *guess[:i]], offset=i)
            for i in range(len(row.tokens))
        ]

    def _draws(self) -> list[Draw]:
        request = self.group.request
        if self.choice is not None:
            return [Draw(self.choice, len(self.output), request.sampling, request.prompt, self.output)]
        if self.group.first_tokens is not None:
            return []
        nothing: ReadOnly[int] = ()
        return [Draw(choice, 0, request.sampling, request.prompt, nothing) for choice in range(request.sampling.n)]


def finish_reason(token: int, position: int, sampling: SamplingParams) -> FinishReason | None:
    """Whether a choice ends with the token at `position` (from 0) of its completion.

    A stop token ends it from token number min_tokens + 1 on; the sampler does not draw one earlier.
    """
    if token in sampling.stop_token_ids and position >= sampling.min_tokens:
        return FinishReason.STOP
    if position + 1 >= sampling.max_tokens:
        return FinishReason.LENGTH
    return None
