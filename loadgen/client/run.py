"""One measured run: starts its processes, lets them begin together, shows progress, and puts their records together."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from loadgen.client.about import is_simulated
from loadgen.client.clock import now_s
from loadgen.client.config import Progress, RunConfig, ShardConfig, ShardReport, Start
from loadgen.client.plan import make_plan
from loadgen.client.pool import Pool
from loadgen.client.records import read_records, write_records
from loadgen.report.result import RunResult, machine, make_result

START_DELAY_S = 0.1  # for all processes to have read when to begin
STOP_TIMEOUT_S = 20.0

Message = Progress | ShardReport


class ShardFailed(RuntimeError):
    """A process of the run ended without a report; what it wrote to standard error has the reason."""


async def run_once(
    config: RunConfig,
    *,
    headers: dict[str, str] | None = None,
    ca_file: str = "",
    records_path: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> RunResult:
    """
    Args:
        headers: of every request; kept out of the result, because there are keys among them.
        ca_file: PEM, of the authorities that an https server is believed by; empty: the system's.
        records_path: where the records go, one JSON line for each request; nowhere when none.
        on_progress: told about once a second.

    Raises:
        ValueError: the configuration makes no plan.
        OSError: a trace, or `ca_file`, cannot be read.
        ShardFailed: a process of the run failed.
    """
    # What is wrong with a configuration is said here, once, and not by every process.
    Pool(config.base_url, config.path, headers or {}, ca_file).close()
    plan = await asyncio.to_thread(make_plan, config)
    simulated = await asyncio.to_thread(is_simulated, config, headers or {}, ca_file)
    where, started_at = machine(), datetime.now(UTC).isoformat(timespec="seconds")
    with TemporaryDirectory(prefix="loadgen-") as folder:
        files = [Path(folder) / f"{number}.jsonl" for number in range(config.processes)]
        configs = [
            ShardConfig(run=config, shard=number, records=str(file), headers=headers or {}, ca_file=ca_file)
            for number, file in enumerate(files)
        ]
        reports = await _run_shards(configs, on_progress)
        records = [record for file in files for record in read_records(file)]
    records.sort(key=lambda each: (each.intended_ms, each.index))
    result = await asyncio.to_thread(make_result, config, plan, records, reports, started_at, where)
    if records_path is not None:
        write_records(records_path, records)
    return msgspec.structs.replace(result, simulated=simulated)


class _Shard:
    """A process of the run, and what it last said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.progress = Progress(planned=0)
        self.report: ShardReport | None = None

    @classmethod
    async def open(cls, config: ShardConfig) -> _Shard:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadgen.client.shard"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=64 << 20,
        )
        shard = cls(process)
        shard._tell(config)
        return shard

    async def read(self) -> Message:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ShardFailed(f"a process of the load generator ended with status {await self._process.wait()}")
        message: Message = msgspec.json.decode(line, type=Message)
        if isinstance(message, Progress):
            self.progress = message
        else:
            self.report = message
        return message

    def start(self, at: Start) -> None:
        self._tell(at)

    def interrupt(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()

    async def close(self) -> None:
        """It has said its last word, or is told to stop."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _tell(self, message: msgspec.Struct) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")


async def _run_shards(configs: list[ShardConfig], on_progress: Callable[[Progress], None]) -> list[ShardReport]:
    async with AsyncExitStack() as stack:
        shards = []
        for config in configs:
            shard = await _Shard.open(config)
            stack.push_async_callback(shard.close)
            stack.callback(shard.interrupt)
            shards.append(shard)
        await asyncio.gather(*(shard.read() for shard in shards))
        start = Start(now_s() + START_DELAY_S)
        for shard in shards:
            shard.start(start)
        try:
            return await _reports(shards, on_progress)
        except asyncio.CancelledError:
            # What was measured until now is worth keeping; a second interruption is not caught.
            for shard in shards:
                shard.interrupt()
            return await _reports(shards, on_progress)


async def _reports(shards: list[_Shard], on_progress: Callable[[Progress], None]) -> list[ShardReport]:
    async def until_report(shard: _Shard) -> ShardReport:
        while shard.report is None:  # after an interruption it may be there already
            if isinstance(await shard.read(), Progress):
                on_progress(sum((each.progress for each in shards), Progress(planned=0)))
        return shard.report

    return list(await asyncio.gather(*(until_report(shard) for shard in shards)))
