"""What the block pool's operations cost: `python -m benchmarks.block_pool [--blocks N] [--seconds S]`.

Prints operations on one block per second, one thread, pure Python; the last line is JSON. The pool is warm: every block
has been used and most are cached prefixes, as on a worker that has served for a while.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import cycle

from diptych.engine.block_pool import BlockPool

TABLE = 32  # blocks of one sequence: 512 tokens at 16 a block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4_096, help="in the pool")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement; the best of three counts")
    args = parser.parse_args()
    results = {}
    for name, make in CASES.items():
        rate = max(operations_per_s(*make(args.blocks), args.seconds / 3) for _ in range(3))
        results[name] = round(rate)
        print(f"{name:32} {rate:>12,.0f} block operations/s")
    print(json.dumps(results))


def operations_per_s(turn: Callable[[], None], operations: int, seconds: float) -> float:
    """`turn` does so many operations on one block each."""
    num_turns, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for _ in range(10):
            turn()
        num_turns += 10
    return num_turns * operations / took


def single(num_blocks: int) -> tuple[Callable[[], None], int]:
    """A decoding sequence takes a block and gives it back."""
    pool = BlockPool(num_blocks)

    def turn() -> None:
        pool.release(pool.allocate(1) or [])

    return turn, 2


def table(num_blocks: int) -> tuple[Callable[[], None], int]:
    """A sequence without a cached prefix comes and goes."""
    pool = BlockPool(num_blocks)

    def turn() -> None:
        pool.release(pool.allocate(TABLE) or [])

    return turn, 2 * TABLE


def hit(num_blocks: int) -> tuple[Callable[[], None], int]:
    """A sequence finds its whole prefix in the cache: look-up, one reference on each block, and back."""
    pool, hashes = warm(num_blocks)

    def turn() -> None:
        blocks = pool.match(hashes)
        pool.allocate(0, blocks)
        pool.release(blocks)

    return turn, 3 * TABLE


def churn(num_blocks: int) -> tuple[Callable[[], None], int]:
    """Prompts nobody has seen before, on a full cache: each block is evicted, taken, indexed and given back."""
    pool, _ = warm(num_blocks)
    prompts = cycle([chain(number) for number in range(2 * num_blocks // TABLE)])  # gone before it comes again

    def turn() -> None:
        cached_sequence(pool, next(prompts))
        pool.take_events()

    return turn, 4 * TABLE


def warm(num_blocks: int) -> tuple[BlockPool, list[bytes]]:
    """A pool whose blocks are all cached, and the hashes of its latest chain."""
    pool = BlockPool(num_blocks)
    for number in range(-(num_blocks // TABLE), 0):
        cached_sequence(pool, chain(number))
    pool.take_events()
    return pool, chain(-1)


def cached_sequence(pool: BlockPool, hashes: list[bytes]) -> None:
    blocks = pool.allocate(TABLE)
    if blocks is None:
        raise ValueError(f"the pool is too small; it needs {TABLE} blocks")
    for i, block in enumerate(blocks):
        pool.index(block, hashes[i], hashes[i - 1] if i else None, blocks[i - 1] if i else None)
    pool.release(blocks)


def chain(number: int) -> list[bytes]:
    return [f"{number}:{i}".encode() for i in range(TABLE)]


CASES: dict[str, Callable[[int], tuple[Callable[[], None], int]]] = {
    "allocate, release": single,
    f"allocate, release {TABLE}": table,
    "match, acquire, release": hit,
    "evict, allocate, index, release": churn,
}

if __name__ == "__main__":
    main()
