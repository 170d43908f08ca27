"""The fixed forms that decode steps are brought into, so that a recorded CUDA graph can compute them.

A graph replays the same kernels on the same memory. A *bucket* is a step of so many rows with tables of so many blocks;
rows that a step does not have are padding: token 0 at position 0 of a scratch block, which nobody owns. So what padding
writes lies outside the blocks that sequences own, and what it computes is dropped.

Pure: knows nothing about torch or graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diptych.engine.interface import Row

# A step that reads more KV than this spends its time in kernels, not in launching them; and a graph of it would hold
# that much gathered KV for good.
MAX_READ_TOKENS = 1 << 17
SMALLEST_WIDTH = 16  # blocks; only where wide tables cost time


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The fixed form of a step."""

    batch: int  # rows
    width: int  # blocks in a row's table


def make_buckets(max_batch: int, max_width: int, block_size: int, *, reads_padding: bool) -> list[Bucket]:
    """Enough of them that padding stays cheap, few enough that recording takes seconds.

    Args:
        max_batch: rows of the longest decode step; 0: no buckets.
        max_width: blocks of the longest sequence.
        reads_padding: of the attention. If not, one width will do.
    """
    # From 2 rows: the model computes a lone row as two anyway (`linear.py`).
    batches = sorted({min(size, max_batch) for size in (2, 4, *range(8, max_batch + 8, 8))}) if max_batch else []
    if not reads_padding:
        return [Bucket(max(2, batch), max_width) for batch in batches]
    widths = [SMALLEST_WIDTH]
    while widths[-1] < max_width:
        widths.append(widths[-1] * 4)
    buckets = {Bucket(max(2, batch), min(width, max_width)) for batch in batches for width in widths}
    return sorted(bucket for bucket in buckets if bucket.batch * bucket.width * block_size <= MAX_READ_TOKENS)


def choose_bucket(buckets: Iterable[Bucket], rows: Sequence[Row], block_size: int) -> Bucket | None:
    """The smallest bucket that holds this step; None if there is none, or a row has more than one token."""
    if any(len(row.tokens) != 1 for row in rows):
        return None
    width = max(row.start // block_size + 1 for row in rows)
    fitting = (bucket for bucket in buckets if bucket.batch >= len(rows) and bucket.width >= width)
    return min(fitting, default=None)


def pad_rows(rows: Sequence[Row], batch: int, scratch_block: int) -> list[Row]:
    """`rows`, and behind them as many that only touch the scratch block as are missing to `batch`."""
    return [*rows, *(Row(-1, [0], 0, [scratch_block]) for _ in range(batch - len(rows)))]
