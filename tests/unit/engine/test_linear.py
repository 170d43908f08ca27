"""Linear layers give the same row, to the bit, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch

from diptych.engine.linear import can_pack, make_linear

SHAPES = [(960, 576), (576, 1536), (3072, 576), (100, 64), (7, 5)]  # out, in; the first three are SmolLM2-135M's
NUM_ROWS = (1, 2, 3, 7, 16, 17, 33, 64, 129, 511)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_do_not_depend_on_their_number(shape: tuple[int, int], with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(shape, generator=generator), torch.randn(512, shape[1], generator=generator)
    bias = torch.randn(shape[0], generator=generator) if with_bias else None
    if not can_pack(weight):
        pytest.skip("this torch has no oneDNN")
    with torch.inference_mode():
        linear = make_linear(weight, bias)
        whole = linear(rows)
        torch.testing.assert_close(whole, torch.nn.functional.linear(rows, weight, bias), rtol=1e-3, atol=1e-3)
        for count in NUM_ROWS:
            assert torch.equal(linear(rows[:count].clone()), whole[:count]), count
            assert torch.equal(linear(rows[-count:].clone()), whole[-count:]), count
