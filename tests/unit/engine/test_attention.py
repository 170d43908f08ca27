from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from diptych.engine.attention import TorchPagedAttention
from diptych.engine.interface import Row
from diptych.engine.kv_cache import KVCache

HEADS, KV_HEADS, DIM, BLOCK, LAYERS = 6, 2, 16, 8, 2


class Sequence:
    """Keys and values of one sequence, and a table of blocks to keep them in."""

    def __init__(self, length: int, blocks: list[int], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.query = torch.randn(length, HEADS, DIM, generator=generator)
        self.key_value = torch.randn(length, 2, KV_HEADS, DIM, generator=generator)
        self.blocks = blocks

    def row(self, start: int, end: int) -> Row:
        return Row(0, [0] * (end - start), start, self.blocks)

    def expected(self) -> torch.Tensor:
        """[length, HEADS * DIM] by torch's own attention over the whole sequence."""
        key, value = self.key_value.transpose(0, 2).transpose(0, 1)  # each [KV_HEADS, length, DIM]
        query = self.query.transpose(0, 1)
        out = scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1).reshape(len(self.query), HEADS * DIM)


def make_attention() -> tuple[TorchPagedAttention, KVCache]:
    torch.set_num_threads(1)  # the products are tiny: threads only wait for each other
    block_bytes = LAYERS * 2 * KV_HEADS * BLOCK * DIM * 4
    cache = KVCache(
        capacity_bytes=128 * block_bytes,
        num_layers=LAYERS,
        num_kv_heads=KV_HEADS,
        block_size=BLOCK,
        head_dim=DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return TorchPagedAttention(cache, HEADS), cache


def run(attention: TorchPagedAttention, parts: list[tuple[Sequence, int, int]], layer: int = 1) -> list[torch.Tensor]:
    """One step over (sequence, start, end) parts; returns each part's output."""
    query = torch.cat([sequence.query[start:end] for sequence, start, end in parts])
    key_value = torch.cat([sequence.key_value[start:end] for sequence, start, end in parts])
    plan = attention.plan([sequence.row(start, end) for sequence, start, end in parts])
    out = attention.run(layer, query, key_value, plan)
    return list(out.split([end - start for _, start, end in parts]))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 128, 129, 300])
def test_equals_torchs_attention(length: int) -> None:
    attention, _ = make_attention()
    sequence = Sequence(length, list(range(60, 10, -1)))
    (out,) = run(attention, [(sequence, 0, length)])
    torch.testing.assert_close(out, sequence.expected(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 32, 33, 128, 199])
def test_chunks_do_not_change_a_bit(chunk: int) -> None:
    sequence = Sequence(200, list(range(30)))
    (whole,) = run(make_attention()[0], [(sequence, 0, 200)])
    attention, _ = make_attention()
    parts = [run(attention, [(sequence, start, min(start + chunk, 200))])[0] for start in range(0, 200, chunk)]
    assert torch.equal(torch.cat(parts), whole)


def test_batch_mates_do_not_change_a_bit() -> None:
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


def test_the_block_table_does_not_change_a_bit() -> None:
    (forward,) = run(make_attention()[0], [(Sequence(100, list(range(13))), 0, 100)])
    (scattered,) = run(make_attention()[0], [(Sequence(100, list(range(99, 60, -3))), 0, 100)])
    assert torch.equal(forward, scattered)


def test_never_reads_a_block_of_another_row() -> None:
    attention, cache = make_attention()
    sequence, mate = Sequence(20, [3, 5, 7]), Sequence(150, list(range(20, 40)), seed=1)
    run(attention, [(sequence, 0, 19), (mate, 0, 149)])
    foreign = [block for block in range(cache.num_blocks) if block not in sequence.blocks]
    cache.pool[foreign] = torch.nan
    out, ruined = run(attention, [(sequence, 19, 20), (mate, 149, 150)])
    torch.testing.assert_close(out, sequence.expected()[19:], rtol=1e-4, atol=1e-5)
    assert ruined.isnan().all()  # the NaNs were there to be read


def test_layers_do_not_mix() -> None:
    attention, cache = make_attention()
    run(attention, [(Sequence(20, [0, 1, 2]), 0, 20)], layer=0)
    assert cache.pool[:, 0].any()
    assert not cache.pool[:, 1].any()
