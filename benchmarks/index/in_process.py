"""What needs no Redis: matching, applying, guessing, hashing, memory. One thread, one core."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice

import msgspec

from benchmarks.index.data import NUM_PROMPTS, PLACEMENTS, Source, settle
from benchmarks.index.timing import median_us, seconds
from kv_transfer.hashing import block_hashes, hash_key
from kv_transfer.schema import EventBatch, IndexEvent, Snapshot
from router.prefix_index import Applied, PrefixIndex

CALLS = 800
WORKERS = 64
BLOCK_SIZE = 16  # tokens
PROMPT_TOKENS = 32_768
CASES = ((160, 8), (160, WORKERS), (2_000, WORKERS))  # blocks x workers

_decode = msgspec.msgpack.Decoder(EventBatch).decode


def matching() -> Iterator[tuple[str, float]]:
    """Every worker holds another length of each prompt; `_full`: all hold all of it."""
    for num_blocks, num_workers in CASES:
        for ragged in (True, False):
            source = Source()
            prompts = [source.hashes(num_blocks) for _ in range(NUM_PROMPTS)]
            index = source.index(num_workers, prompts, ragged)
            took = median_us(lambda prompt, index=index: index.matches(prompt, 0.0), islice(cycle(prompts), CALLS))  # type: ignore[misc]
            assert index.matches(prompts[0], 0.0)
            yield f"match_{num_blocks}x{num_workers}{'' if ragged else '_full'}_us", took
    cold = [source.hashes(160) for _ in range(CALLS)]
    yield "match_160x64_unknown_us", median_us(lambda prompt: index.matches(prompt, 0.0), cold)
    yield "guess_160_us", median_us(lambda prompt: index.guess(("w7", "w8"), prompt, 1.0), cold)


def applying() -> Iterator[tuple[str, float]]:
    """From encoded batches, digests checked, into an index that grows from empty to 1 M placements.

    In batches of 256 blocks, each applied by itself: what a busy worker sends every 10 ms. `_small`: batches of eight
    blocks, 64 at once, as the reader gets them when it is behind. `_churn`: at 1 M placements, each batch of 256
    removes as many. `apply_worst_ms`: the longest that one of the first kind held up the event loop, growth included.
    """
    for name, events, blocks, at_once in (("", 32, 8, 1), ("_small", 1, 8, 64)):
        source, index = Source(), PrefixIndex()
        num_batches = PLACEMENTS // WORKERS // (events * blocks)
        logs = {f"w{worker}": source.log(num_batches, events, blocks) for worker in range(WORKERS)}
        for worker_id in logs:
            index.add_worker(worker_id)
            index.load(worker_id, Snapshot(1, 0, b""))

        took = seconds(partial(_apply_logs, index, logs, at_once))
        yield f"apply{name}_blocks_per_s", num_batches * WORKERS * events * blocks / took
        if not name:
            yield "apply_worst_ms", _worst_ms(logs)
            yield "apply_churn_blocks_per_s", _churn(source, index, logs)


def _apply_logs(index: PrefixIndex, logs: dict[str, list[bytes]], at_once: int) -> None:
    for start in range(0, len(logs["w0"]), at_once):
        for worker_id, log in logs.items():
            batches = [_decode(each) for each in log[start : start + at_once]]
            assert index.apply(worker_id, *batches) is Applied.APPLIED


def _worst_ms(logs: dict[str, list[bytes]]) -> float:
    """The least of three runs: a pause of the machine is not ours."""
    worst = []
    for _ in range(3):
        index, longest = PrefixIndex(), 0.0
        for worker_id in logs:
            index.add_worker(worker_id)
            index.load(worker_id, Snapshot(1, 0, b""))
        gc.collect()
        for number in range(len(logs["w0"])):
            for worker_id, log in logs.items():
                longest = max(longest, seconds(partial(index.apply, worker_id, _decode(log[number])), collect=False))
        worst.append(1e3 * longest)
    return min(worst)


def _churn(source: Source, index: PrefixIndex, logs: dict[str, list[bytes]]) -> float:
    rounds, encoded, blocks = 4, [], 0
    for number in range(rounds):
        for worker_id, log in logs.items():
            gone = [event.stored for event in _decode(log[number]).events]
            sequence = index.position(worker_id)[1] + 1 + number
            events = [IndexEvent(source.keys(8), keys) for keys in gone]
            blocks += 2 * 8 * len(gone)
            encoded.append((worker_id, msgspec.msgpack.encode(EventBatch(1, sequence, events))))

    def apply_all() -> None:
        for worker_id, batch in encoded:
            assert index.apply(worker_id, _decode(batch)) is Applied.APPLIED

    return blocks / seconds(apply_all)


def hashing() -> Iterator[tuple[str, float]]:
    """Keyed BLAKE3 chain over blocks of 16 tokens, from a list of token ids."""
    tokens = [int.from_bytes(os.urandom(2), "little") for _ in range(PROMPT_TOKENS)]
    key = hash_key("model", b"tenant")
    took_us = median_us(lambda _: block_hashes(key, tokens, BLOCK_SIZE), range(30))
    yield "hash_tokens_per_s", 1e6 * PROMPT_TOKENS / took_us


def memory() -> Iterator[tuple[str, float]]:
    """All of Python's memory for the index, with every block held by one worker only.

    `_worst`: just grown. `_growing`: for the seconds in which it grows.
    """
    source, index = Source(), PrefixIndex()
    tracemalloc.start()
    before, worst, growing = tracemalloc.get_traced_memory()[0], 0.0, 0.0
    total = 0
    for worker in range(WORKERS + WORKERS // 2):
        index.add_worker(f"w{worker}")
        index.load(f"w{worker}", Snapshot(1, 0, source.keys(PLACEMENTS // WORKERS)))
        total += PLACEMENTS // WORKERS
        sizes = [(tracemalloc.get_traced_memory()[0] - before) / total]
        settle(index)
        sizes.append((tracemalloc.get_traced_memory()[0] - before) / total)
        if total >= PLACEMENTS // 2:
            growing, worst = max(growing, sizes[0]), max(worst, sizes[1])
        if total == PLACEMENTS:
            yield "bytes_per_placement", sizes[1]
    tracemalloc.stop()
    yield "bytes_per_placement_worst", worst
    yield "bytes_per_placement_growing", growing
