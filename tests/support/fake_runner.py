"""A runner without a model: KV cells are a hash chain, so any wrong, stale or overwritten block changes the output.

The cell of a position depends on its token and on the cell before it, as real KV depends on everything before it. A
draw depends on every cell that attention would read through the block table. `reference` says what an isolated request
must produce, without blocks, batches or caches.

A request with a top_k of k mostly repeats the token k places before, so that its text can be foreseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diptych.engine.interface import Draw, Drawn, Plan, Row
from diptych.engine.sequence import finish_reason
from diptych.messages import FinishReason, SamplingParams, TokenLogprob

VOCABULARY = 50
EMPTY = 0  # a cell nobody wrote; `garbage` below is one that a stranger wrote
_ROOT = 1


def cells_of(tokens: Sequence[int]) -> list[int]:
    """The KV cells of a token sequence, from its start."""
    cells: list[int] = []
    previous = _ROOT
    for token in tokens:
        previous = hash((previous, token))  # of integers: the same in every process
        cells.append(previous)
    return cells


def draw_token(cells: Sequence[int], draw: Draw) -> int:
    """Deterministic in the KV that is read, the seed, the choice and the position; honours min_tokens."""
    sampling = draw.sampling
    number = hash((*cells, sampling.seed, draw.choice, draw.position))
    token = number % VOCABULARY
    known = (*draw.prompt, *draw.output)
    if 0 < sampling.top_k <= len(known) and number // VOCABULARY % 8:
        token = known[-sampling.top_k]
    while draw.position < sampling.min_tokens and token in sampling.stop_token_ids:
        token = (token + 1) % VOCABULARY
    return token


def reference(prompt: Sequence[int], sampling: SamplingParams, choice: int) -> tuple[list[int], FinishReason]:
    """The output of one choice of an isolated request."""
    tokens, output = list(prompt), list[int]()
    while True:
        position = len(output)
        token = draw_token(cells_of(tokens), Draw(choice, position, sampling, prompt, output))
        tokens.append(token)
        output.append(token)
        if reason := finish_reason(token, position, sampling):
            return output, reason


class FakeRunner:
    """Runs plans on lists of integers. Refuses rows that read what was never written or write outside their table."""

    pool_address = 0

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.block_bytes = 8 * block_size
        self.cells = [[EMPTY] * block_size for _ in range(num_blocks)]
        self.cleared: list[tuple[int, int]] = []
        self.num_steps = 0

    def execute(self, plan: Plan, kv_written: Callable[[], None] | None = None) -> list[list[Drawn]]:
        self.num_steps += 1
        for source, destination in plan.copies:
            self.cells[destination] = list(self.cells[source])
        for row in plan.rows:  # all writes before all reads: rows of one step must not share what they write
            self._write(row)
        if kv_written is not None:
            kv_written()
        return [[self._draw(row, draw) for draw in row.draws] for row in plan.rows]

    def clear_tail(self, block: int, num_tokens: int) -> None:
        self.cleared.append((block, num_tokens))
        self.cells[block][num_tokens:] = [EMPTY] * (self.block_size - num_tokens)

    def fill(self, blocks: Sequence[int], first_block: int, prompt: Sequence[int]) -> None:
        """What a peer's writes would leave in `blocks`: the prompt's KV from `first_block` on."""
        cells = cells_of(prompt)
        for index, block in enumerate(blocks, first_block):
            cut = cells[index * self.block_size : (index + 1) * self.block_size]
            self.cells[block] = cut + [EMPTY] * (self.block_size - len(cut))

    def garbage(self, blocks: Sequence[int]) -> None:
        """A late write by a peer that was told to stop."""
        for block in blocks:
            self.cells[block] = [-1] * self.block_size

    def read(self, blocks: Sequence[int], num_tokens: int) -> list[int]:
        """The first `num_tokens` cells of a block table."""
        return [self.cells[blocks[i // self.block_size]][i % self.block_size] for i in range(num_tokens)]

    def _write(self, row: Row) -> None:
        assert row.tokens, "a row computes at least one token"
        previous = self.read(row.blocks, row.start)[-1] if row.start else _ROOT
        for position, token in enumerate(row.tokens, row.start):
            previous = hash((previous, token))
            self.cells[row.blocks[position // self.block_size]][position % self.block_size] = previous

    def _draw(self, row: Row, draw: Draw) -> Drawn:
        num_tokens = row.start + draw.offset % len(row.tokens) + 1
        token = draw_token(self.read(row.blocks, num_tokens), draw)
        asked = draw.sampling.logprobs is not None
        return Drawn(draw.choice, token, TokenLogprob(token, -0.5, [(token, -0.5)]) if asked else None)
