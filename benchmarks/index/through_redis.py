"""What goes through Redis, on the embedded Valkey: how soon events can be matched, and how long a restart takes.

The routers of the first are processes of their own (`python -m benchmarks.index.through_redis URL WORKERS SECONDS`).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.index.data import PLACEMENTS, Source
from deploy.embedded_valkey import EmbeddedValkey
from diptych.background import background
from diptych.engine.interface import CacheEvent
from diptych.membership import connect
from kv_transfer.publisher import IndexPublisher
from router.index_reader import IndexReader
from router.prefix_index import PrefixIndex

CLUSTER = "bench"
WORKERS = 64  # of the restart
PUBLISHERS = 8
ROUTERS = 2
EVENTS_PER_S = 500
BLOCKS_PER_EVENT = 8
SECONDS = 6.0
READY = "ready"


def through_redis() -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as server:
        yield from asyncio.run(_visibility(server.url)).items()
        yield from asyncio.run(_warm_restart(server.url)).items()


def _fail(error: BaseException) -> None:
    raise error


async def _visibility(url: str) -> dict[str, float]:
    """Oldest event of every batch, from `publish` until it can be matched; the slowest of the routers counts."""
    async with AsyncExitStack() as stack:
        routers = [await _start_router(url) for _ in range(ROUTERS)]
        publishers = [IndexPublisher(connect(url), CLUSTER, f"w{number}") for number in range(PUBLISHERS)]
        for publisher in publishers:
            await stack.enter_async_context(background(publisher.run(), "publisher", _fail))
        for router in routers:
            await _expect(router, READY)
        await _publish(publishers)
        lags = [json.loads((await router.communicate())[0]) for router in routers]
    p99 = [1e3 * statistics.quantiles(each, n=100)[98] for each in lags]
    p50 = [1e3 * statistics.median(each) for each in lags]
    return {"visible_p99_ms": max(p99), "visible_p50_ms": max(p50), "visible_batches": min(map(len, lags))}


async def _start_router(url: str) -> Process:
    arguments = ["-m", "benchmarks.index.through_redis", url, str(PUBLISHERS), str(SECONDS + 1)]
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)


async def _expect(process: Process, word: str) -> None:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().strip()
    if line != word:
        raise RuntimeError(f"a router said {line!r} and not {word!r}")


async def _publish(publishers: list[IndexPublisher]) -> None:
    source, began = Source(), time.monotonic()
    for number in range(int(EVENTS_PER_S * SECONDS)):
        await asyncio.sleep(max(0.0, began + number / EVENTS_PER_S - time.monotonic()))
        publishers[number % PUBLISHERS].publish(CacheEvent(stored=tuple(source.hashes(BLOCKS_PER_EVENT))))


async def _warm_restart(url: str) -> dict[str, float]:
    """A router that knows nothing, until the whole index of 64 workers is in it and a prompt is matched."""
    source = Source()
    prompt = source.hashes(160)
    async with AsyncExitStack() as stack:
        publishers = [IndexPublisher(connect(url), "restart", f"w{number}") for number in range(WORKERS)]
        for publisher in publishers:
            publisher.publish(CacheEvent(stored=(*prompt, *source.hashes(PLACEMENTS // WORKERS - 160))))
            await stack.enter_async_context(background(publisher.run(), "publisher", _fail))
            await publisher.flush()
        redis, index = connect(url), PrefixIndex()
        reader = IndexReader(redis, "restart", index)
        began = time.perf_counter()
        reader.set_workers(f"w{number}" for number in range(WORKERS))
        await stack.enter_async_context(background(reader.run(), "reader", _fail))
        if not await reader.caught_up(60.0):
            raise RuntimeError(f"the index did not get warm: {reader.degraded}")
        matched = index.matches(prompt, 0.0)
        took = time.perf_counter() - began
    held = sum(index.num_blocks(f"w{number}") for number in range(WORKERS))
    assert len(matched) == WORKERS
    assert held == PLACEMENTS // WORKERS * WORKERS
    return {"warm_restart_1m_s": took}


async def _be_a_router(url: str, num_workers: int, run_s: float, say: Callable[[str], None]) -> None:
    lags: list[float] = []
    reader = IndexReader(connect(url), CLUSTER, PrefixIndex(), observe_lag=lags.append)
    reader.set_workers(f"w{number}" for number in range(num_workers))
    async with background(reader.run(), "reader", _fail):
        await reader.caught_up(30.0)
        say(READY)
        await asyncio.sleep(run_s)
    say(json.dumps(lags))


if __name__ == "__main__":
    asyncio.run(
        _be_a_router(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), say=lambda text: print(text, flush=True))
    )
