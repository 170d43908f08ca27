"""Checksums of blocks: xxh3-64 over a block's bytes, against corruption and torn writes, not against an adversary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

Pool = npt.NDArray[np.uint8]  # [num_blocks, block_bytes]


def checksums(pool: Pool | None, blocks: Iterable[int]) -> list[int]:
    """One for each of `blocks`; zeros where there is no pool to read."""
    if pool is None:
        return [0 for _ in blocks]
    return [xxhash.xxh3_64_intdigest(pool[block].data) for block in blocks]
