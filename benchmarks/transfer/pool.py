"""A pool of KV blocks as the engine lays it out (`diptych.engine.kv_cache`), without the engine."""

from __future__ import annotations

import mmap

import numpy as np

from kv_transfer.checksum import Pool
from kv_transfer.layout import KVLayout, fingerprint

FINGERPRINT = fingerprint(model="benchmark", revision="1", dtype="float32", layout="benchmark/1", block_size=16)


def make_pool(num_blocks: int, block_bytes: int, seed: int) -> Pool:
    """Random bytes, uint8 [num_blocks, block_bytes]: every page is there, huge pages where the machine gives them."""
    pages = mmap.mmap(-1, num_blocks * block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    pool = np.frombuffer(pages, dtype=np.uint8).reshape(num_blocks, block_bytes)
    pool[:] = np.frombuffer(np.random.default_rng(seed).bytes(pool.nbytes), dtype=np.uint8).reshape(pool.shape)
    return pool


def layout_of(pool: Pool) -> KVLayout:
    return KVLayout(pool.ctypes.data, pool.shape[0], pool.shape[1], FINGERPRINT)
