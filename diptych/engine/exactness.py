"""Whether rows are exact on this machine: a token's numbers do not depend on chunks, batch mates or block tables.

That is a property of the libraries underneath (which kernel a BLAS picks for a shape), observed and not promised by
them. So the model's own first layer and head are asked at start: the same short sequences whole, cut, token by token,
beside others and in other blocks, compared to the last bit.

On a GPU nothing is asked: cuBLAS chooses a matrix product's kernel by its shape, and attention splits its work by the
batch (docs/decisions/014). A short probe could agree by luck, and a promise must not rest on that.

Knows nothing about how the layers compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.engine.attention import PagedAttention
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache
from diptych.engine.model import Model
from diptych.model_spec import ModelSpec

LENGTHS = (71, 9, 18, 5)  # of the probed sequences; the first one is longer than a tile of the C++ kernel
EXACT = "exact: rows do not depend on chunks, batch or block table"
SAME_PATH = "same kernel path, same seed: rows depend on how they are batched"


@dataclass(frozen=True, slots=True)
class ProbeParts:
    """What a probe needs: a one-layer model over a cache of its own."""

    spec: ModelSpec
    block_size: int
    dtype: torch.dtype
    device: torch.device
    make_attention: Callable[[KVCache], PagedAttention]
    make_model: Callable[[PagedAttention], Model]


def rows_are_exact(parts: ProbeParts) -> bool:
    """Compute the same sequences in several ways; no on anything but a CPU. About 50 ms for SmolLM2-135M.

    Steps of more rows than the probe's are not covered; the tests cover those.
    """
    if parts.device.type != "cpu":
        return False
    length = LENGTHS[0]
    expected = _Probe(parts).sequence(0, [length])
    ways = ([1] * 3 + [length - 3], [length - 2, 1, 1], [16, 33, length - 49])
    alone = all(_equal(_Probe(parts, reverse=True).sequence(0, cuts), expected) for cuts in ways)
    return alone and _equal(_Probe(parts).beside_others(), expected)


def _equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


class _Probe:
    """Sequences over a fresh cache. Results are (hidden of every token, KV, logits of the last token) of sequence 0."""

    def __init__(self, parts: ProbeParts, *, reverse: bool = False) -> None:
        spec, size = parts.spec, parts.block_size
        counts = [-(-length // size) for length in LENGTHS]
        self._cache = KVCache(
            capacity_bytes=sum(counts) * spec.block_bytes(size, parts.dtype.itemsize) // spec.num_layers,
            num_layers=1,
            num_kv_heads=spec.num_kv_heads,
            block_size=size,
            head_dim=spec.head_dim,
            dtype=parts.dtype,
            device=parts.device,
        )
        blocks = list(range(sum(counts)))[:: -1 if reverse else 1]
        self._tables = [blocks[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
        generator = torch.Generator().manual_seed(0)
        self._tokens = [torch.randint(spec.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]
        self._attention = parts.make_attention(self._cache)
        self._model = parts.make_model(self._attention)
        self._device = parts.device
        self._max_context = spec.max_context

    def sequence(self, index: int, chunks: list[int]) -> tuple[Tensor, ...]:
        """One sequence alone, cut into `chunks`."""
        hidden, start = [], 0
        for count in chunks:
            hidden.append(self._forward([self._row(index, start, start + count)]))
            start += count
        return self._results(torch.cat(hidden), logit_rows=1)

    def beside_others(self) -> tuple[Tensor, ...]:
        """Sequence 0 in the middle of a batch, then its last token in a batch of single tokens."""
        order = [1, 0, 2, 3]
        first = self._forward([self._row(i, 0, LENGTHS[i] - 1) for i in order])
        last = self._forward([self._row(i, LENGTHS[i] - 1, LENGTHS[i]) for i in order])
        begin = LENGTHS[1] - 1
        hidden = torch.cat((first[begin : begin + LENGTHS[0] - 1], last[1:2]))
        return self._results(hidden, logit_rows=len(order))

    def _row(self, index: int, start: int, end: int) -> Row:
        return Row(index, self._tokens[index][start:end], start, self._tables[index])

    def _forward(self, rows: list[Row]) -> Tensor:
        tokens = torch.tensor([token for row in rows for token in row.tokens], device=self._device)
        positions = torch.cat([torch.arange(row.start, row.start + len(row.tokens)) for row in rows]).to(self._device)
        positions %= self._max_context  # a context shorter than the probe has no angles for all of it
        return self._model.forward(tokens, positions, self._attention.plan(rows))[: len(tokens)]

    def _results(self, hidden: Tensor, logit_rows: int) -> tuple[Tensor, ...]:
        length = len(hidden)
        kv = self._cache.pool[self._tables[0], 0].permute(0, 3, 1, 2, 4).flatten(0, 1)[:length]
        logits = self._model.logits(hidden[-logit_rows:].clone())
        return hidden, kv, logits[-1]
