"""A `Runner` without a model: KV cells are a keyed hash chain, and a drawn token is a function of all KV it reads.

    cell(p)  = BLAKE3_key(first 16 bytes of cell(p-1) ‖ token(p)), as long as a cell is
    token    = vocabulary[BLAKE3_key(XXH3-128 of the cells 0..p, through the block table ‖ seed ‖ choice ‖ position)]

So one wrong, zeroed, swapped or stale byte of KV changes what is said, as it might with a real model, but always: a
token drawn from other KV is another one but for one chance in as many as the vocabulary has, and a few cannot all be
the same. The chain does not depend on chunks, batches or block sizes: `reference` says what an isolated request must
produce.

The cells are real memory, `num_blocks` x `block_bytes` from `pool_address`: transfers move and checksum them like any
KV. Of the sampling parameters seed, temperature (0: the seed is not used), stop tokens and min_tokens count; `logprobs`
gets made-up numbers of the right form; the others change nothing. Knows nothing about requests or block ownership.

How long a step lasts is `pace.Pace`'s. The KV of a step is in memory before its time is over; nobody is told before.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from xxhash import xxh3_128

from diptych.config import MIN_CELL_BYTES as MIN_CELL_BYTES
from diptych.engine.interface import Draw, Drawn, Plan, Row
from diptych.engine.sim.pace import Pace
from diptych.messages import SamplingParams, TokenLogprob

GATHER_BLOCK_BYTES = 16 << 10  # blocks up to this are copied together and hashed in one go: calls cost more than copies
_ROOT = bytes(MIN_CELL_BYTES)
_KEY_CONTEXT = "diptych 2026 simulated engine, version 1"  # BLAKE3 derive_key: fixed and unique to this use


class SimRunner:
    """See `diptych.engine.interface.Runner`. Not thread-safe: one thread executes plans.

    Attributes:
        dtype, exact, attention_name: as of `TorchRunner`; a hash chain is exact by nature
    """

    exact = True
    attention_name = "simulated"
    num_scratch_blocks = 1  # behind those the engine gives out, to probe connections

    def __init__(
        self,
        *,
        kv_cache_bytes: int,
        block_size: int,
        fingerprint: str,
        vocabulary: Sequence[int],
        pace: Pace | None = None,
        cell_bytes: int = MIN_CELL_BYTES,
        dtype: str = "float32",
    ) -> None:
        """
        Args:
            kv_cache_bytes: of the pool; rounded down to whole blocks of block_size x cell_bytes.
            block_size: tokens.
            fingerprint: of the model that is played: other models say other things.
            vocabulary: token ids that may be drawn; leave out those that end a text.
            pace: how long steps take; what computing the hashes left of that is slept. None: no longer than needed.
            cell_bytes: KV of one token.
            dtype: of the KV of the model that is played.

        Raises:
            ValueError: a cell is too short to chain, the vocabulary is empty, or not even one block fits.
        """
        if cell_bytes < MIN_CELL_BYTES:
            raise ValueError(f"cell_bytes is {cell_bytes}; a link of the chain needs {MIN_CELL_BYTES}")
        if not vocabulary:
            raise ValueError("the vocabulary is empty; name at least one token that may be drawn")
        self.dtype = dtype
        self.block_bytes = block_size * cell_bytes
        self.num_blocks = kv_cache_bytes // self.block_bytes
        if not self.num_blocks:
            raise ValueError(f"kv_cache_bytes is {kv_cache_bytes}; one block takes {self.block_bytes}")
        num_blocks = self.num_blocks + self.num_scratch_blocks
        self.pool: npt.NDArray[np.uint8] = np.zeros((num_blocks, self.block_bytes), np.uint8)
        self.pool_address = int(self.pool.ctypes.data)
        self._block_size = block_size
        self._chain = Chain(fingerprint, cell_bytes, vocabulary)
        self._pace = pace

    def execute(self, plan: Plan, kv_written: Callable[[], None] | None = None) -> list[list[Drawn]]:
        """See `Runner`. `kv_written` is not called: KV counts as computed when the modelled time is over."""
        if self._pace is not None:
            self._pace.begin(plan.rows)
        for source, destination in plan.copies:
            self.pool[destination] = self.pool[source]
        for row in plan.rows:  # all writes before all reads: rows of one step do not share what they write
            self._write(row)
        drawn = [[self._draw(row, draw) for draw in row.draws] for row in plan.rows]
        if self._pace is not None:
            self._pace.end(plan.rows)
        return drawn

    def clear_tail(self, block: int, num_tokens: int) -> None:
        self.pool[block, num_tokens * self._chain.cell_bytes :] = 0

    def _write(self, row: Row) -> None:
        size, width = self._block_size, self._chain.cell_bytes
        before = self._cell(row.blocks, row.start - 1)[:MIN_CELL_BYTES].tobytes() if row.start else _ROOT
        cells = np.frombuffer(b"".join(self._chain.cells(row.tokens, before)), np.uint8)
        position, written = row.start, 0
        while written < len(row.tokens):
            offset = position % size
            count = min(size - offset, len(row.tokens) - written)
            block = self.pool[row.blocks[position // size]]
            block[offset * width : (offset + count) * width] = cells[written * width : (written + count) * width]
            position, written = position + count, written + count

    def _draw(self, row: Row, draw: Draw) -> Drawn:
        num_tokens = row.start + draw.offset % len(row.tokens) + 1
        token = self._chain.draw(self._read(row.blocks, num_tokens), draw.sampling, draw.choice, draw.position)
        return Drawn(draw.choice, token, _logprob(token, draw.sampling.logprobs))

    def _read(self, blocks: Sequence[int], num_tokens: int) -> Iterable[memoryview]:
        full, rest = divmod(num_tokens, self._block_size)
        if self.block_bytes <= GATHER_BLOCK_BYTES:
            yield self.pool[np.array(blocks[:full], np.intp)].data
        else:
            for block in blocks[:full]:
                yield self.pool[block].data
        if rest:
            yield self.pool[blocks[full], : rest * self._chain.cell_bytes].data

    def _cell(self, blocks: Sequence[int], position: int) -> npt.NDArray[np.uint8]:
        width = self._chain.cell_bytes
        start = position % self._block_size * width
        return self.pool[blocks[position // self._block_size], start : start + width]


class Chain:
    """The hash chain that plays the model."""

    def __init__(self, fingerprint: str, cell_bytes: int, vocabulary: Sequence[int]) -> None:
        self.cell_bytes = cell_bytes
        self._vocabulary = vocabulary
        self._key = blake3(fingerprint.encode(), derive_key_context=_KEY_CONTEXT).digest()

    def cells(self, tokens: Sequence[int], before: bytes = _ROOT) -> list[bytes]:
        """The cells of `tokens`, which follow the cell that begins with the 16 bytes `before`."""
        hasher, cells = blake3(key=self._key), []
        for token in tokens:
            hasher.reset()
            hasher.update(before + token.to_bytes(4, "little"))
            cells.append(hasher.digest(self.cell_bytes))
            before = cells[-1][:MIN_CELL_BYTES]
        return cells

    def draw(self, cells: Iterable[bytes | memoryview], sampling: SamplingParams, choice: int, position: int) -> int:
        """The token that follows KV; `cells` are all of it in order, in pieces of any length."""
        content = xxh3_128()
        for piece in cells:
            content.update(piece)
        seed, choice = (sampling.seed % 2**64, choice) if sampling.temperature > 0 else (0, 0)
        spot = struct.pack("<QII", seed, choice, position)
        number = int.from_bytes(blake3(content.digest() + spot, key=self._key).digest(8), "little")
        for turn in range(len(self._vocabulary)):
            token = self._vocabulary[(number + turn) % len(self._vocabulary)]
            if position >= sampling.min_tokens or token not in sampling.stop_token_ids:
                return token
        raise ValueError("min_tokens forbids every token of the vocabulary")

    def reference(self, prompt: Sequence[int], sampling: SamplingParams, choice: int = 0) -> list[int]:
        """The completion of one choice of a request that is alone in the world."""
        cells, output = self.cells(prompt), list[int]()
        while True:
            output.append(self.draw(cells, sampling, choice, len(output)))
            stopped = output[-1] in sampling.stop_token_ids and len(output) > sampling.min_tokens
            if stopped or len(output) >= sampling.max_tokens:
                return output
            cells += self.cells(output[-1:], cells[-1][:MIN_CELL_BYTES])


def _logprob(token: int, asked: int | None) -> TokenLogprob | None:
    """Made up: the drawn token first, its neighbours behind it, each half as likely as the one before."""
    if asked is None:
        return None
    return TokenLogprob(token, -0.5, [(token + rank, -0.5 - 0.7 * rank) for rank in range(asked)])
