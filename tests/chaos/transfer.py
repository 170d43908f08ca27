"""Transfers under attack: `python -m tests.chaos.transfer [--kills 200] [--freezes 50] ...`, or `make chaos-transfer`.

Clients ask a cluster of two prefill and two decode workers without a pause, with prompts whose KV is all moved, while
workers are killed (SIGKILL) or frozen (SIGSTOP, later SIGCONT) in the middle of a transfer, or while other clients
leave. Every answer is compared, by token ids, with a single engine's; after every few blows the cluster has to come to
rest with no block held. The last campaign spoils thousands of transfers in this process.

Progress goes to stderr. The last line is one JSON object; the exit code is 0 if nothing in it is a fault. The seed
fixes the prompts, the victims and the delays; what a worker is doing at a moment depends on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from chaos_cluster import ChaosCluster, chaos_cluster
from chaos_load import Bank, Load
from chaos_tally import Tally, is_clean
from corruption import campaign as corruption_campaign
from reference import Reference
from tiny_model import make_tiny_model

from benchmarks.record import record
from deploy.embedded_valkey import EmbeddedValkey

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
NUM_CLIENTS = 4
NUM_LEAVING = 6  # clients that leave, beside the others
NEW_REQUESTS = 8  # that are served while a worker is frozen, before it wakes up
KILLS_A_ROUND, FREEZES_A_ROUND, CANCELS_A_ROUND = 20, 5, 50  # between two rests
Blow = Callable[[ChaosCluster, Load, int], Awaitable[None]]


class Chaos:
    """The campaigns, one after the other; each on a cluster of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.tally = Tally()
        self._folder, self._seed = folder, seed
        self._random = random.Random(seed)
        self._model = make_tiny_model(folder / "model", max_context=2048)
        self._bank = Bank(Reference(self._model), seed)

    async def kill(self, num: int) -> None:
        async def blow(cluster: ChaosCluster, _load: Load, count: int) -> None:
            for _ in range(count):
                await cluster.kill()
                self.tally.kills += 1

        await self._campaign("kill", blow, num, KILLS_A_ROUND)

    async def freeze(self, num: int) -> None:
        async def blow(cluster: ChaosCluster, load: Load, count: int) -> None:
            for _ in range(count):
                async with cluster.frozen():
                    await load.ask(NEW_REQUESTS)
                await load.ask(NEW_REQUESTS)
                self.tally.freezes += 1

        await self._campaign("freeze", blow, num, FREEZES_A_ROUND)

    async def cancel(self, num: int) -> None:
        async def blow(_cluster: ChaosCluster, load: Load, count: int) -> None:
            aim = self.tally.cancels + count

            async def leaver() -> None:
                while self.tally.cancels < aim:
                    has_left = await load.leave(self._random.uniform(0.0, load.typical_s))
                    self.tally.cancels += has_left

            await asyncio.gather(*(leaver() for _ in range(NUM_LEAVING)))

        await self._campaign("cancel", blow, num, CANCELS_A_ROUND)

    def corrupt(self, num: int) -> None:
        if num == 0:
            return
        result = corruption_campaign(self._seed, num)
        tally = self.tally
        tally.corruptions, tally.detected = result.corruptions, result.detected
        tally.false_alarms = result.false_alarms
        _say(f"corruption: {result.detected} of {result.corruptions} detected, {result.clean} clean transfers")

    async def _campaign(self, name: str, blow: Blow, num: int, a_round: int) -> None:
        """Rounds of blows under load, each of which ends at rest. What goes wrong for good ends the campaign only."""
        if num == 0:
            return
        redis_folder, logs = _new(self._folder / f"{name}-redis"), _new(self._folder / name)
        try:
            with EmbeddedValkey(redis_folder) as redis:
                async with chaos_cluster(self._model, redis.url, logs, self._seed) as cluster:
                    try:
                        await self._rounds(name, cluster, blow, num, a_round)
                    finally:
                        self._note(cluster)
        except* Exception as group:
            traceback.print_exception(group)
            self.tally.failures += [f"{name}: {error!r}" for error in _leaves(group)]
            _say(f"{name}: given up; the last line says why")

    async def _rounds(self, name: str, cluster: ChaosCluster, blow: Blow, num: int, a_round: int) -> None:
        load = Load(cluster.processes.http, self._bank, self.tally.verdicts)
        began = time.monotonic()
        for first in range(0, num, a_round):
            last = min(first + a_round, num)
            async with load.running(NUM_CLIENTS):
                await blow(cluster, load, last - first)
            await cluster.rest()
            verdicts = json.dumps(vars(self.tally.verdicts))
            _say(f"{name}: {last} of {num} after {time.monotonic() - began:.0f} s; {verdicts}")
        self.tally.retries += int((await cluster.processes.metrics()).value("diptych_retries_total"))

    def _note(self, cluster: ChaosCluster) -> None:
        remains = cluster.remains
        self.tally.leaked_blocks += remains.leaked_blocks
        self.tally.left_open += len(remains.others)
        self.tally.died += len(remains.dead)
        if remains.leaked_blocks or remains.others or remains.dead:
            _say(f"remains: {remains}")


async def run(chaos: Chaos, kills: int, freezes: int, cancels: int, corruptions: int) -> dict[str, object]:
    """All campaigns; the numbers of the last line."""
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):  # a process cluster prints its logs, for pytest
        await chaos.kill(kills)
        await chaos.freeze(freezes)
        await chaos.cancel(cancels)
        await asyncio.to_thread(chaos.corrupt, corruptions)
    return {**chaos.tally.numbers(), "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    args = _arguments()
    logging.disable(logging.WARNING)  # one line for each corruption
    folder = Path(tempfile.mkdtemp(prefix="chaos-transfer-"))
    chaos = Chaos(folder, args.seed)
    numbers = asyncio.run(run(chaos, args.kills, args.freezes, args.cancels, args.corruptions)) | {"seed": args.seed}
    clean = is_clean(numbers)
    if clean:
        shutil.rmtree(folder)
    else:
        _say(f"the processes' logs are kept in {folder}")
    if args.record:
        _say(f"recorded in {record(RESULTS, 'chaos-transfer', numbers)}")
    print(json.dumps(numbers))
    sys.exit(not clean)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--freezes", type=int, default=50)
    parser.add_argument("--cancels", type=int, default=200)
    parser.add_argument("--corruptions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results")
    return parser.parse_args()


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What a group holds, however nested."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
