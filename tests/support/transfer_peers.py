"""Pools and agents for transfer tests."""

from __future__ import annotations

import numpy as np

from kv_transfer.agent import TransferAgent
from kv_transfer.checksum import Pool
from kv_transfer.layout import KVLayout, fingerprint

FINGERPRINT = fingerprint(model="tiny", revision="1", dtype="float32", layout="test/1", block_size=16)


def make_pool(num_blocks: int = 8, block_bytes: int = 256, fill: int | None = None) -> Pool:
    """Random blocks, or all bytes `fill`."""
    if fill is not None:
        return np.full((num_blocks, block_bytes), fill, dtype=np.uint8)
    return np.random.default_rng(0).integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)


def layout_of(pool: Pool, of: str = FINGERPRINT) -> KVLayout:
    return KVLayout(pool.ctypes.data, pool.shape[0], pool.shape[1], of)


def meet(a: TransferAgent, a_layout: KVLayout, b: TransferAgent, b_layout: KVLayout) -> None:
    a.add_peer(b_layout.hello(b.name, b.metadata()))
    b.add_peer(a_layout.hello(a.name, a.metadata()))
