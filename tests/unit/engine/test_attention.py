"""Attention over paged KV: the torch reference and the C++ kernel, for every vector width this machine can run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from diptych.engine.attention import PagedAttention, TorchPagedAttention
from diptych.engine.interface import Row
from diptych.engine.kernels import build
from diptych.engine.kernels.native import Kernels
from diptych.engine.kernels.native_attention import NativePagedAttention
from diptych.engine.kv_cache import KVCache

LAYERS = 2


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    block: int

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads}x{self.dim} blocks of {self.block}"


SMALL = Shape(6, 2, 16, 8)
SHAPES = [
    SMALL,
    Shape(9, 3, 64, 16),
    Shape(4, 4, 128, 16),
    Shape(14, 2, 64, 32),
    Shape(8, 1, 80, 16),
    Shape(2, 2, 20, 5),
    Shape(4, 2, 6, 1),
    Shape(2, 1, 256, 100),
]


class Sequence:
    """Keys and values of one sequence, and a table of blocks to keep them in."""

    def __init__(self, length: int, blocks: list[int], seed: int = 0, shape: Shape = SMALL) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.query = torch.randn(length, shape.heads, shape.dim, generator=generator)
        self.key_value = torch.randn(length, 2, shape.kv_heads, shape.dim, generator=generator)
        self.blocks = blocks

    def row(self, start: int, end: int) -> Row:
        return Row(0, [0] * (end - start), start, self.blocks)

    def expected(self) -> torch.Tensor:
        """[length, heads * dim] by torch's own attention over the whole sequence."""
        key, value = self.key_value.transpose(0, 2).transpose(0, 1)  # each [kv_heads, length, dim]
        query = self.query.transpose(0, 1)
        out = scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).reshape(len(self.query), -1)


Make = Callable[..., tuple[PagedAttention, KVCache]]


def make_cache(shape: Shape = SMALL, num_blocks: int = 128) -> KVCache:
    return KVCache(
        capacity_bytes=num_blocks * LAYERS * 2 * shape.kv_heads * shape.block * shape.dim * 4,
        num_layers=LAYERS,
        num_kv_heads=shape.kv_heads,
        block_size=shape.block,
        head_dim=shape.dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module", params=["torch", "native", "plain C++"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels | None:
    """None: torch. "native": for this processor; "plain C++": for any of its kind, so with narrow vectors."""
    if request.param == "torch":
        return None
    libraries = list(build.libraries(tmp_path_factory.mktemp("kernels")))
    if not libraries:
        pytest.skip("there is no C++ compiler")
    return Kernels(ctypes.CDLL(str(libraries[0 if request.param == "native" else -1])))


@pytest.fixture
def make_attention(kernels: Kernels | None) -> Make:
    def make(shape: Shape = SMALL, num_blocks: int = 128) -> tuple[PagedAttention, KVCache]:
        torch.set_num_threads(1)  # the products are tiny: threads only wait for each other
        cache = make_cache(shape, num_blocks)
        if kernels is None:
            return TorchPagedAttention(cache, shape.heads), cache
        return NativePagedAttention(kernels, cache, shape.heads), cache

    return make


def run(attention: PagedAttention, parts: list[tuple[Sequence, int, int]], layer: int = 1) -> list[torch.Tensor]:
    """One step over (sequence, start, end) parts; returns each part's output."""
    query = torch.cat([sequence.query[start:end] for sequence, start, end in parts])
    key_value = torch.cat([sequence.key_value[start:end] for sequence, start, end in parts])
    plan = attention.plan([sequence.row(start, end) for sequence, start, end in parts])
    out = attention.run(layer, query, *key_value.unbind(1), plan)
    return list(out.split([end - start for _, start, end in parts]))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 128, 129, 300])
def test_equals_torchs_attention(make_attention: Make, length: int) -> None:
    attention, _ = make_attention()
    sequence = Sequence(length, list(range(60, 10, -1)))
    (out,) = run(attention, [(sequence, 0, length)])
    torch.testing.assert_close(out, sequence.expected(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 32, 33, 128, 199])
def test_chunks_do_not_change_a_bit(make_attention: Make, chunk: int) -> None:
    sequence = Sequence(200, list(range(30)))
    (whole,) = run(make_attention()[0], [(sequence, 0, 200)])
    attention, _ = make_attention()
    parts = [run(attention, [(sequence, start, min(start + chunk, 200))])[0] for start in range(0, 200, chunk)]
    assert torch.equal(torch.cat(parts), whole)


def test_batch_mates_do_not_change_a_bit(make_attention: Make) -> None:
    lengths = (140, 3, 129, 260)
    alone = [Sequence(length, list(range(i * 34, i * 34 + 34)), seed=i) for i, length in enumerate(lengths[:3])]
    alone.append(Sequence(lengths[3] - 60, list(range(102, 128)), seed=3))
    outs = []
    for sequence in alone:
        attention, _ = make_attention()
        run(attention, [(sequence, 0, len(sequence.query) - 1)])
        outs.append(run(attention, [(sequence, len(sequence.query) - 1, len(sequence.query))])[0])

    attention, _ = make_attention()
    run(attention, [(sequence, 0, len(sequence.query) - 1) for sequence in alone])
    together = run(attention, [(sequence, len(sequence.query) - 1, len(sequence.query)) for sequence in alone])
    assert all(torch.equal(one, other) for one, other in zip(outs, together, strict=True))


def test_the_block_table_does_not_change_a_bit(make_attention: Make) -> None:
    (forward,) = run(make_attention()[0], [(Sequence(100, list(range(13))), 0, 100)])
    (scattered,) = run(make_attention()[0], [(Sequence(100, list(range(99, 60, -3))), 0, 100)])
    assert torch.equal(forward, scattered)


def test_never_reads_a_block_of_another_row(make_attention: Make) -> None:
    attention, cache = make_attention()
    sequence, mate = Sequence(20, [3, 5, 7]), Sequence(150, list(range(20, 40)), seed=1)
    run(attention, [(sequence, 0, 19), (mate, 0, 149)])
    foreign = [block for block in range(cache.num_blocks) if block not in sequence.blocks]
    cache.pool[foreign] = torch.nan
    out, ruined = run(attention, [(sequence, 19, 20), (mate, 149, 150)])
    torch.testing.assert_close(out, sequence.expected()[19:], rtol=1e-4, atol=1e-5)
    assert ruined.isnan().all()  # the NaNs were there to be read


def test_layers_do_not_mix(make_attention: Make) -> None:
    attention, cache = make_attention()
    run(attention, [(Sequence(20, [0, 1, 2]), 0, 20)], layer=0)
    assert cache.pool[:, 0].any()
    assert not cache.pool[:, 1].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_whole_and_in_chunks(make_attention: Make, shape: Shape) -> None:
    length = 150
    table = list(range(-(-length // shape.block) + 1))[::-1]
    sequence = Sequence(length, table, shape=shape)
    (whole,) = run(make_attention(shape, 160)[0], [(sequence, 0, length)])
    torch.testing.assert_close(whole, sequence.expected(), rtol=1e-4, atol=1e-5)

    attention, cache = make_attention(shape, 160)
    cache.pool.fill_(torch.nan)  # what others left behind; the engine zeroes the rest of a new block
    cache.pool[table] = 0
    cuts = [0, 1, 2, 63, 64, 65, 129, 149, 150]
    parts = [run(attention, [(sequence, start, end)])[0] for start, end in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)


def test_tokens_behind_the_plan_are_padding(make_attention: Make) -> None:
    attention, cache = make_attention()
    sequence = Sequence(2, [3])
    plan = attention.plan([sequence.row(0, 1)])
    out = attention.run(0, sequence.query, *sequence.key_value.unbind(1), plan)
    assert not out[1].any()
    assert not cache.pool[3, :, :, :, 1].any()
    torch.testing.assert_close(out[0], sequence.expected()[0])


def test_far_apart_scores_do_not_overflow(make_attention: Make) -> None:
    sequence = Sequence(100, list(range(20)))
    sequence.query *= 100
    (out,) = run(make_attention()[0], [(sequence, 0, 100)])
    torch.testing.assert_close(out, sequence.expected(), rtol=1e-3, atol=1e-3)


def test_threads_do_not_change_a_bit(kernels: Kernels | None) -> None:
    if kernels is None:
        pytest.skip("torch's own threads are not ours to test")
    outs = []
    for threads in (1, 2, 3):
        attention = NativePagedAttention(kernels, make_cache(), SMALL.heads, threads=threads)
        outs.append(run(attention, [(Sequence(200, list(range(30))), 0, 200)])[0])
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
