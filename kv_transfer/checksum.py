"""Checksums of blocks: xxh3-64 over a block's bytes, against corruption and torn writes, not against an adversary.

The sender chooses which blocks are checksummed and says so in the delivery; the receiver verifies what it is given and
may demand a number. A block without a checksum is `None`: 0 is a checksum like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
import xxhash

Pool = npt.NDArray[np.uint8]  # [num_blocks, block_bytes]


@dataclass(frozen=True, slots=True)
class Checks:
    """Which share of each transfer's blocks is checksummed; as a sender takes, as a receiver demands at least."""

    sample: float = 1.0  # of the blocks, 0 (none) to 1 (all)

    def __post_init__(self) -> None:
        if not 0.0 <= self.sample <= 1.0:  # written so that NaN is refused as well
            raise ValueError(f"sample is {self.sample}; it is a share, 0 (no checksums) to 1 (of every block)")

    def count(self, num_blocks: int) -> int:
        """How many of a transfer's blocks; at least one unless the share is 0. Equal settings give equal numbers."""
        return ceil(self.sample * num_blocks)

    def chosen(self, transfer_id: str, num_blocks: int) -> frozenset[int]:
        """Their indices, spread evenly; where they begin differs from transfer to transfer."""
        count = self.count(num_blocks)
        begin = xxhash.xxh3_64_intdigest(transfer_id.encode())
        return frozenset((begin + i * num_blocks // count) % num_blocks for i in range(count))


NO_CHECKS = Checks(0.0)


def checksum(pool: Pool, block: int) -> int:
    return xxhash.xxh3_64_intdigest(pool[block].data)


def checksums(pool: Pool, blocks: Iterable[int]) -> list[int]:
    """One for each of `blocks`."""
    return [checksum(pool, block) for block in blocks]
