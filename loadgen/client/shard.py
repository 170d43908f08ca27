"""One process of a run: `python -m loadgen.client.shard`, with a `ShardConfig` as a line of JSON on standard input.

It plans its share, prints a first `Progress`, waits for `Start` on standard input, runs, prints `Progress` every second
and at last a `ShardReport`; its records go to a file. SIGTERM ends the run early: what runs is recorded as aborted.
When its standard input ends, who started it is gone, however that came: it stops sending and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from loadgen.arrivals import ClosedLoop
from loadgen.client.bodies import Bodies
from loadgen.client.body import BodyBuilder
from loadgen.client.clock import LoopLag, now_s, sleep_until
from loadgen.client.config import Progress, RunConfig, ShardConfig, ShardReport, Start
from loadgen.client.plan import make_plan
from loadgen.client.pool import Pool
from loadgen.client.records import write_records
from loadgen.client.sender import Sender, clients_of_shard

PROGRESS_S = 1.0
ORPHANED = 1  # exit status


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who started this decides
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=ShardConfig)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft != resource.RLIM_INFINITY else soft, hard))
    return uvloop.run(_run(config))


async def _run(config: ShardConfig) -> int:
    run = config.run
    planned = make_plan(run).shard(config.shard, run.processes)
    bodies = Bodies(planned, BodyBuilder(run))
    bodies.fill()
    pool = Pool(run.base_url, run.path, config.headers, config.ca_file)
    # What is here now stays: the collector need not look at it again in the middle of a run.
    gc.collect()
    gc.freeze()
    _say(Progress(planned=len(planned)))
    told = await _told()
    if not (line := await told.readline()):
        return ORPHANED
    start = msgspec.json.decode(line, type=Start)
    sender = Sender(pool, bodies, run.timeout_s, start.at_s)
    report = await _measured(sender, pool, run, config.shard, start.at_s, len(planned), told)
    if told.at_eof():
        return ORPHANED
    write_records(Path(config.records), sender.records)
    _say(sender.progress(len(planned)))
    _say(report)
    return 0


async def _told() -> asyncio.StreamReader:
    """Standard input, behind its first line."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _measured(
    sender: Sender, pool: Pool, run: RunConfig, shard: int, start_s: float, planned: int, told: asyncio.StreamReader
) -> ShardReport:
    lag = LoopLag()
    work = asyncio.ensure_future(_send(sender, run, shard, start_s))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    helpers = [asyncio.ensure_future(_tell(sender, planned)), asyncio.ensure_future(_cancel_at_end(told, work))]
    await sleep_until(start_s)
    helpers.append(asyncio.ensure_future(lag.watch()))
    began, cpu = now_s(), time.process_time()
    await asyncio.wait([work])
    share = (time.process_time() - cpu) / max(1e-9, now_s() - began)
    for helper in helpers:
        helper.cancel()
    await asyncio.wait(helpers)
    pool.close()
    if not work.cancelled():
        work.result()
    return ShardReport(
        cpu_share=round(share, 4), loop_lag_ms=lag.samples_ms, connections=pool.opened, interrupted=work.cancelled()
    )


async def _send(sender: Sender, run: RunConfig, shard: int, start_s: float) -> None:
    if isinstance(run.arrivals, ClosedLoop):
        stop_s = None if run.duration_s is None else start_s + run.duration_s
        await sender.closed_loop(clients_of_shard(run.arrivals.concurrency, shard, run.processes), stop_s)
    else:
        await sender.open_loop()


async def _tell(sender: Sender, planned: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is there: `_cancel_at_end` sees to it
        while True:
            await asyncio.sleep(PROGRESS_S)
            _say(sender.progress(planned))


async def _cancel_at_end(told: asyncio.StreamReader, work: asyncio.Future[None]) -> None:
    """Nothing is said after `Start`, so what comes next is the end."""
    await told.read()
    work.cancel()


def _say(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
