"""Random blocks, batches and indexes to measure with; the same for every run."""

from __future__ import annotations

import random

import msgspec

from kv_transfer.schema import Digest, EventBatch, IndexEvent, Snapshot, digest_of, join_hashes, read_keys
from router.prefix_index import PrefixIndex

PLACEMENTS = 1_000_000
NUM_PROMPTS = 16  # that take turns, so that not everything is in the processor's cache


class Source:
    def __init__(self) -> None:
        self._random = random.Random(20250601)

    def hashes(self, count: int) -> list[bytes]:
        joined = self._random.randbytes(16 * count)
        return [joined[start : start + 16] for start in range(0, 16 * count, 16)]

    def keys(self, count: int) -> bytes:
        return read_keys(self._random.randbytes(8 * count)).tobytes()

    def lengths(self, num_workers: int, num_blocks: int, ragged: bool) -> list[int]:
        """How much of a prompt each worker holds: all of it, or any length."""
        return [self._random.randint(1, num_blocks) if ragged else num_blocks for _ in range(num_workers)]

    def index(self, num_workers: int, prompts: list[list[bytes]], ragged: bool) -> PrefixIndex:
        """An index of PLACEMENTS other blocks, with workers that hold prefixes of these prompts."""
        index = PrefixIndex()
        num_blocks = len(prompts[0])
        lengths = [self.lengths(num_workers, num_blocks, ragged) for _ in prompts]
        for worker in range(num_workers):
            held = [join_hashes(prompt[: length[worker]]) for prompt, length in zip(prompts, lengths, strict=True)]
            index.add_worker(f"w{worker}")
            keys = self.keys(PLACEMENTS // num_workers) + b"".join(held)
            index.load(f"w{worker}", Snapshot(1, 0, keys))
        settle(index)
        return index

    def log(self, num_batches: int, events: int, blocks: int) -> list[bytes]:
        """Encoded batches of one worker as they come from Redis, with their digests."""
        digest, encoded = Digest(), []
        for sequence in range(1, num_batches + 1):
            stored = [self.keys(blocks) for _ in range(events)]
            all_keys = read_keys(b"".join(stored))
            added = digest_of(all_keys)
            digest = Digest(digest.num_blocks + added.num_blocks, digest.xor ^ added.xor)
            batch = EventBatch(1, sequence, [IndexEvent(keys) for keys in stored], digest)
            encoded.append(msgspec.msgpack.encode(batch))
        return encoded


def settle(index: PrefixIndex) -> None:
    """What a reader does between two reads, until there is nothing left to do."""
    while index.sweep():
        pass
