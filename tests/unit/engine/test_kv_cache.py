from __future__ import annotations

import mmap

import pytest
import torch

from diptych.engine.kv_cache import KVCache

LAYERS, HEADS, BLOCK, DIM = 3, 2, 4, 8


def make_cache(num_blocks: int = 5, num_scratch_blocks: int = 0) -> KVCache:
    return KVCache(
        capacity_bytes=num_blocks * LAYERS * 2 * HEADS * BLOCK * DIM * 4 + 7,  # a remainder too small for a block
        num_layers=LAYERS,
        num_kv_heads=HEADS,
        block_size=BLOCK,
        head_dim=DIM,
        dtype=torch.float32,
        device=torch.device("cpu"),
        num_scratch_blocks=num_scratch_blocks,
    )


def test_is_one_zeroed_page_aligned_piece() -> None:
    cache = make_cache()
    assert cache.num_blocks == 5
    assert cache.block_bytes == LAYERS * 2 * HEADS * BLOCK * DIM * 4
    assert cache.address % mmap.PAGESIZE == 0
    assert cache.pool.is_contiguous()
    assert not cache.pool.any()


def test_a_block_is_contiguous_at_its_address() -> None:
    cache = make_cache()
    assert cache.pool[3].is_contiguous()
    assert cache.pool[3].data_ptr() == cache.address + 3 * cache.block_bytes


def test_write_puts_each_token_in_its_slot_of_one_layer() -> None:
    cache = make_cache()
    blocks, offsets = torch.tensor([4, 1, 1]), torch.tensor([3, 0, 2])
    key_value = torch.randn(3, 2, HEADS, DIM)
    cache.write(1, cache.slots(blocks, offsets), key_value)
    for token, (block, offset) in enumerate(zip(blocks.tolist(), offsets.tolist(), strict=True)):
        assert torch.equal(cache.pool[block, 1, :, :, offset], key_value[token])
        cache.pool[block, 1, :, :, offset] = 0
    assert not cache.pool.any()


def test_row_of_finds_a_blocks_keys() -> None:
    cache = make_cache()
    cache.pool[2, 0, 0, 0] = 1
    assert torch.equal(cache.rows[cache.row_of(torch.tensor([2]))], torch.ones(1, BLOCK * DIM))


def test_clear_tail_zeroes_the_rest_of_a_block_in_every_layer() -> None:
    cache = make_cache()
    cache.pool.fill_(1)
    cache.clear_tail(2, 3)
    assert cache.pool[2, :, :, :, :3].all()
    assert not cache.pool[2, :, :, :, 3:].any()
    assert cache.pool[[0, 1, 3, 4]].all()


def test_copy_block() -> None:
    cache = make_cache()
    cache.pool.copy_(torch.randn_like(cache.pool))
    cache.copy_block(1, 4)
    assert torch.equal(cache.pool[1], cache.pool[4])
    assert not torch.equal(cache.pool[1], cache.pool[3])


def test_refuses_less_than_one_block() -> None:
    with pytest.raises(ValueError, match="kv_cache_bytes is 7; one block of 4 tokens takes 1536 bytes"):
        make_cache(num_blocks=0)


def test_scratch_blocks_lie_behind_the_pool_on_top_of_the_capacity() -> None:
    cache = make_cache(num_blocks=5, num_scratch_blocks=1)
    assert cache.num_blocks == 5
    assert cache.scratch_block == 5
    assert cache.pool.shape[0] == 6
    with pytest.raises(ValueError, match="no scratch block"):
        make_cache().scratch_block  # noqa: B018
