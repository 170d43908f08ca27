"""Torch's own attention over paged KV, in every dtype, against dense attention in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from paged_reference import HeadShape, PagedSequence, run_step

from diptych.engine import sdpa_attention
from diptych.engine.sdpa_attention import SdpaPagedAttention

SMALL = HeadShape(6, 2, 16, block=8)
SHAPES = [SMALL, HeadShape(9, 3, 64), HeadShape(4, 4, 128), HeadShape(8, 1, 80), HeadShape(4, 2, 6, block=1)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_dense_attention_whole_and_in_chunks(shape: HeadShape, dtype: torch.dtype) -> None:
    length = 100
    cache = shape.cache(dtype, num_blocks=110)
    sequence = PagedSequence(shape, length, range(109, 109 - (-(-length // shape.block)), -1), dtype)
    attention = SdpaPagedAttention(cache, shape.heads)
    cuts = [0, 1, 2, 63, 64, 99, 100]
    parts = [run_step(attention, [(sequence, start, end)])[0] for start, end in pairwise(cuts)]
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(torch.cat(parts), sequence.expected(), rtol=tolerance, atol=tolerance)
    (whole,) = run_step(attention, [(sequence, 0, length)])
    torch.testing.assert_close(whole, sequence.expected(), rtol=tolerance, atol=tolerance)


@DTYPES
def test_a_mixed_step_of_rows_of_all_kinds(dtype: torch.dtype) -> None:
    lengths = (1, 9, 40, 150, 33)
    starts = (0, 8, 39, 100, 0)  # a first token, two decoding, a later chunk, a whole prompt
    sequences = [
        PagedSequence(SMALL, length, range(20 * i, 20 * i + 20), dtype, seed=i) for i, length in enumerate(lengths)
    ]
    attention = SdpaPagedAttention(SMALL.cache(dtype, num_blocks=100), SMALL.heads)
    earlier = [(sequence, 0, start) for sequence, start in zip(sequences, starts, strict=True) if start]
    run_step(attention, earlier)
    outs = run_step(attention, list(zip(sequences, starts, lengths, strict=True)))
    for out, sequence, start in zip(outs, sequences, starts, strict=True):
        torch.testing.assert_close(
            out, sequence.expected()[start:], rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype], check_stride=False
        )


def test_never_reads_a_block_of_another_row() -> None:
    cache = SMALL.cache(torch.bfloat16)
    attention = SdpaPagedAttention(cache, SMALL.heads)
    sequence = PagedSequence(SMALL, 20, [3, 5, 7], torch.bfloat16)
    mate = PagedSequence(SMALL, 150, range(20, 40), torch.bfloat16, seed=1)
    run_step(attention, [(sequence, 0, 19), (mate, 0, 149)])
    cache.pool[[block for block in range(cache.num_blocks) if block not in sequence.blocks]] = torch.nan
    out, ruined = run_step(attention, [(sequence, 19, 20), (mate, 149, 150)])
    torch.testing.assert_close(out, sequence.expected()[19:], rtol=3e-2, atol=3e-2)
    assert ruined.isnan().all()  # the NaNs were there to be read


def test_a_long_row_is_cut_where_its_mask_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa_attention, "MASK_ELEMENTS", 3 * 104 * 7)  # a group of 3, 13 blocks of 8: 7 queries a call
    sequence = PagedSequence(SMALL, 100, range(13), torch.float32)
    attention = SdpaPagedAttention(SMALL.cache(torch.float32), SMALL.heads)
    assert len(attention.plan([sequence.row(0, 100)]).segments) == 15
    (out,) = run_step(attention, [(sequence, 0, 100)])
    torch.testing.assert_close(out, sequence.expected(), rtol=1e-5, atol=1e-5)


def test_tokens_behind_the_plan_are_padding() -> None:
    cache = SMALL.cache(torch.bfloat16)
    attention = SdpaPagedAttention(cache, SMALL.heads)
    sequence = PagedSequence(SMALL, 2, [3], torch.bfloat16)
    plan = attention.plan([sequence.row(0, 1)])
    out = attention.run(0, sequence.query, sequence.key, sequence.value, plan)
    assert not out[1].any()
    assert not cache.pool[3, :, :, :, 1].any()
    torch.testing.assert_close(out[:1].float(), sequence.expected()[:1], rtol=3e-2, atol=3e-2)


def test_decode_inputs_give_the_same_as_a_plan_of_the_rows() -> None:
    sequences = [
        PagedSequence(SMALL, length, range(9 * i, 9 * i + 9), torch.float32, i) for i, length in enumerate((5, 60))
    ]
    cache = SMALL.cache(torch.float32)
    attention = SdpaPagedAttention(cache, SMALL.heads)
    run_step(attention, [(sequence, 0, len(sequence.query) - 1) for sequence in sequences])
    last = [(sequence, len(sequence.query) - 1, len(sequence.query)) for sequence in sequences]
    query, key, value = (torch.cat([getattr(s, name)[-1:] for s in sequences]) for name in ("query", "key", "value"))

    inputs = attention.decode_inputs(batch=2, width=16)
    inputs.fill([sequence.row(start, end) for sequence, start, end in last])
    out = attention.run(1, query, key, value, inputs.plan())
    torch.testing.assert_close(out, torch.cat(run_step(attention, last)))
