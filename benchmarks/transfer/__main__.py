"""Transfer benchmark: `python -m benchmarks.transfer [MODEL_FOLDER] [--quick]`, or `make bench-transfer`.

Moves a 2,048-token prompt's KV between two processes over shared memory, through our transfer threads, through NIXL
alone and by memcpy; then asks prompts of two clusters (with checksums and without) and of one engine without a cluster.
All take turns. Prints a table; the last line is one JSON object. The machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.engine.workload import CHUNK, prompt
from benchmarks.record import record
from benchmarks.transfer.cluster import LOCAL, MAX_TOKENS, Asked, Cluster
from benchmarks.transfer.fencing import fencing_ms
from benchmarks.transfer.pair import Pair, open_pair
from benchmarks.transfer.receiving import BARE, CHECKED
from benchmarks.transfer.report import Answers, Moves, summary, table
from benchmarks.transfer.single import SingleEngine
from deploy.embedded_valkey import EmbeddedValkey
from deploy.model_store import DEFAULT_MODEL, resolve_model
from diptych.engine.limits import Limits
from diptych.model_folder import ModelFolder

RESULTS = Path(__file__).parents[1] / "results"
MOVED_TOKENS = 2048  # of the prompt whose KV is moved without an engine
BLOCK_SIZE = 16  # tokens
DTYPE_BYTES = 4
CACHED_PROMPTS = 3  # each engine's KV cache holds so many of the longest: soon all of its memory has been used once
WARM_UPS = 3
CHECKS_OFF = {"verify_checksums": 0.0}  # fields of `WorkerConfig`


def main() -> None:
    args = _arguments()
    folder = ModelFolder(resolve_model(args.model, os.environ, _say))
    block_bytes = folder.spec.block_bytes(BLOCK_SIZE, DTYPE_BYTES)
    num_blocks = MOVED_TOKENS // BLOCK_SIZE
    moves = asyncio.run(_move(num_blocks, block_bytes, args.moves))
    lengths = [length for length in args.lengths if length + MAX_TOKENS <= folder.spec.max_context]
    answers = _answer(folder, lengths, args.rounds, args.threads)
    numbers = summary(moves, answers, num_blocks * block_bytes)
    if args.record:
        _say(f"recorded in {record(RESULTS, 'transfer', numbers)}")
    print(table(numbers))
    print(json.dumps(numbers))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every engine")
    parser.add_argument("--moves", type=int, default=30, help="turns of moving KV")
    parser.add_argument("--rounds", type=int, default=8, help="turns of asking, for each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048], help="prompt tokens")
    parser.add_argument("--quick", action="store_true", help="a first look: 5 moves, 2 rounds, 1,024 tokens")
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    if args.quick:
        args.moves, args.rounds, args.lengths = 5, 2, [1024]
    return args


async def _move(num_blocks: int, block_bytes: int, turns: int) -> list[Moves]:
    _say(f"moving {num_blocks} blocks of {block_bytes} bytes, {turns} times in each way")
    async with open_pair(num_blocks, block_bytes) as pair:
        for _ in range(WARM_UPS):
            await _move_once(pair)
        return [await _move_once(pair) for _ in range(turns)]


async def _move_once(pair: Pair) -> Moves:
    raw = pair.raw_write_s()
    bare, checked = await pair.push(BARE), await pair.push(CHECKED)
    stalls = (each for push in (bare, checked) for each in (push.pushing_stall_ms, push.receiving_stall_ms))
    return Moves(
        raw=raw,
        push=bare.written_s,
        delivered=bare.delivered_s,
        checked_push=checked.written_s,
        checked_delivered=checked.delivered_s,
        memcpy=pair.memcpy_s(),
        stall_ms=max(stalls),
    )


def _answer(folder: ModelFolder, lengths: list[int], rounds: int, threads: int) -> list[Answers]:
    kv_cache_bytes = (
        CACHED_PROMPTS * (max(lengths) // BLOCK_SIZE + 1) * folder.spec.block_bytes(BLOCK_SIZE, DTYPE_BYTES)
    )
    workers = {
        "block_size": BLOCK_SIZE,
        "kv_cache_bytes": kv_cache_bytes,
        "max_batch_tokens": CHUNK,
        "threads": threads,
    }
    limits = Limits(CHUNK, 64, BLOCK_SIZE, folder.spec.max_context)
    _say("starting two clusters of one prefill and one decode worker")
    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as name, EmbeddedValkey(Path(name)) as redis:
        logs = Path(name)
        with (
            Cluster(folder.path, redis.url, "checked", logs, **workers) as checked,
            Cluster(folder.path, redis.url, "unchecked", logs, **workers, **CHECKS_OFF) as unchecked,
        ):
            single = SingleEngine(folder, kv_cache_bytes, limits, threads)
            turn = _Turn(checked, unchecked, single)
            for _ in range(WARM_UPS):
                turn.take(max(lengths))
            return [turn.take(length, note=True) for _ in range(rounds) for length in lengths]


class _Turn:
    """Everybody answers prompts of one length, one after the other; who begins changes."""

    def __init__(self, checked: Cluster, unchecked: Cluster, single: SingleEngine) -> None:
        self._checked, self._unchecked, self._single = checked, unchecked, single
        self._num_prompts = 0
        self._num_turns = 0

    def take(self, length: int, note: bool = False) -> Answers:
        asked: dict[str, Asked] = {}
        single_ttft = 0.0

        def ask(name: str, cluster: Cluster, **who: str) -> Callable[[], None]:
            def run() -> None:
                asked[name] = cluster.ask(self._prompt(length), **who)

            return run

        def ask_single() -> None:
            nonlocal single_ttft
            single_ttft = self._single.ttft_ms(self._prompt(length), MAX_TOKENS)

        everybody = [
            ask("checked", self._checked),
            ask("unchecked", self._unchecked),
            ask_single,
            ask("local", self._checked, who=LOCAL),
        ]
        self._num_turns += 1
        first = self._num_turns % len(everybody)
        for run in everybody[first:] + everybody[:first]:
            run()
        checked, unchecked = asked["checked"], asked["unchecked"]
        if note:
            _say(
                f"{length} tokens: first token after {checked.ttft_ms:.0f} ms ({unchecked.ttft_ms:.0f} without"
                f" checksums, {single_ttft:.0f} without a cluster), {checked.exposed_ms:.1f} ms exposed"
            )
        return Answers(
            num_tokens=length,
            checked_ttft=checked.ttft_ms,
            checked_exposed=checked.exposed_ms,
            checked_cpu=checked.worker_cpu_ms,
            unchecked_ttft=unchecked.ttft_ms,
            unchecked_exposed=unchecked.exposed_ms,
            unchecked_cpu=unchecked.worker_cpu_ms,
            local_ttft=asked["local"].ttft_ms,
            single_ttft=single_ttft,
            fencing=fencing_ms(length // BLOCK_SIZE),
        )

    def _prompt(self, length: int) -> list[int]:
        self._num_prompts += 1
        return prompt(length, self._num_prompts)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
