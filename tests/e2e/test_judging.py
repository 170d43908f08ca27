"""A cluster of two prefill and two decode workers under steady load, operated by its commands; the load generator is
the judge.

Draining, scaling, changing roles and killing the controller cost no client an error. Killing a worker may cost those
whose request it served a definite error in time; as it is, they are served elsewhere (docs/life-of-a-request.md).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tiny_model import make_tiny_model
from up_process import ROOT, UpProcess, free_port
from waiting import until

from deploy.api import Admin
from deploy.reconcile import Kind, State
from deploy.status import ClusterStatus, ProcessStatus
from deploy.wanted import POOLS
from loadgen.client.records import Record, read_records

pytestmark = pytest.mark.slow

WHOLE_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 90.0
ERROR_TIMEOUT_MS = 2_000.0  # from a worker's death to the error of a request that it served
REQUESTS_AT_A_TIME = 4
WORKLOAD = "independent:input=20..400,output=60..600"  # the longest answers outlive a drain's deadline
# A busy test machine may well hold a worker up for seconds: that is not what is tried here.
DESCRIPTION = """
model = "{model}"
name = "judged"
prefill = {{ count = 2, options = {{ kv_cache_bytes = 16_777_216 }} }}
decode = {{ count = 2, options = {{ kv_cache_bytes = 33_554_432 }} }}
[router]
http_port = {port}
options = {{ silence_ms = 15_000 }}
[limits]
drain_timeout_s = 2
start_timeout_s = 240
replace_after_s = 60
"""


class Operator:
    """Types the commands of one cluster, and looks at its status."""

    def __init__(self, up: UpProcess, admin: Admin) -> None:
        self._up = up
        self._admin = admin

    async def type(self, *words: str) -> str:
        """What a command says.

        Raises:
            AssertionError: it did not succeed.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.cli", *words),
            cwd=ROOT,
            env=self._up.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            output, _ = await process.communicate()
        assert process.returncode == 0, f"diptych {' '.join(words)}: {output.decode()}"
        self._up.look()
        return output.decode()

    async def oldest(self, kind: Kind) -> ProcessStatus:
        status = await asyncio.to_thread(self._admin.status)
        return next(process for process in status.of(kind) if process.state is State.RUNNING)

    async def kill_controller(self) -> None:
        before = await asyncio.to_thread(self._admin.status)
        os.kill(before.controller_pid, signal.SIGKILL)
        after = await self._whole(lambda status: status.controller_pid != before.controller_pid)
        assert {p.pid for p in after.processes} == {p.pid for p in before.processes}

    async def kill(self, worker: ProcessStatus) -> None:
        """Returns when another serves in its place."""
        os.kill(worker.pid, signal.SIGKILL)
        await self._whole(lambda status: status.find(worker.id) is None)

    async def _whole(self, holds: Callable[[ClusterStatus], bool]) -> ClusterStatus:
        seen: list[ClusterStatus] = []

        async def is_whole() -> bool:
            seen[:] = [status := await asyncio.to_thread(self._admin.status)]
            placeable = all(status.placeable.get(kind) == status.wanted[kind] for kind in POOLS)
            return status.complete and placeable and holds(status)

        await until(is_whole, lambda: f"the cluster is whole: {seen}", WHOLE_TIMEOUT_S)
        self._up.look()
        return seen[0]


class Judge:
    """The load generator, a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._command = (
            *(sys.executable, "-m", "loadgen", "run", f"http://127.0.0.1:{port}", "--model", "tiny"),
            *("--vocabulary-size", "279", "--workload", WORKLOAD, "--concurrency", str(REQUESTS_AT_A_TIME)),
            *("--duration", "600", "--timeout", "120", "--out", str(folder)),
        )

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[list[Record]]:
        """Steady load while the block lasts; then the list is filled with what became of every request."""
        records: list[Record] = []
        with self._said.open("wb") as said:
            process = await asyncio.create_subprocess_exec(*self._command, cwd=ROOT, stdout=said, stderr=said)
        try:
            await self.more(REQUESTS_AT_A_TIME)
            yield records
            await self.more(REQUESTS_AT_A_TIME)
        finally:
            process.send_signal(signal.SIGINT)  # what was measured until then is kept
            await process.wait()
        (file,) = self._folder.glob("*.requests.jsonl")
        records += [record for record in read_records(file) if record.failure != "aborted"]

    async def more(self, num_requests: int) -> None:
        """Return when so many more requests have ended."""
        wanted = self._num_ended() + num_requests

        async def have_ended() -> bool:
            return self._num_ended() >= wanted

        await until(have_ended, self._said.read_text, WHOLE_TIMEOUT_S)

    @property
    def _said(self) -> Path:
        return self._folder / "said"

    def _num_ended(self) -> int:
        return int([0, *re.findall(r"sent, (\d+) ended", self._said.read_text())][-1])


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[UpProcess, int]]:
    """A cluster and its port; it is the block that ends it."""
    port = free_port()
    description = folder / "cluster.toml"
    description.write_text(DESCRIPTION.format(model=make_tiny_model(folder / "tiny"), port=port))
    up = UpProcess(folder, "--config", str(description), "--max-tokens", "8")
    try:
        await up.wait_ready()
        yield up, port
    except BaseException:
        up.give_up()
        raise
    finally:
        await asyncio.to_thread(up.end)


async def test_what_an_operator_does_costs_no_client_an_error(tmp_path: Path) -> None:
    async with running(tmp_path) as (up, port):
        with up.admin() as admin:
            operator, judge = Operator(up, admin), Judge(tmp_path / "gentle", port)
            async with judge.watching() as gentle:
                await operator.type("scale", "prefill=3", "decode=3")
                await operator.type("scale", "prefill=2", "decode=2")
                for kind in POOLS:
                    await operator.type("drain", (await operator.oldest(kind)).name)
                await operator.type("role", (await operator.oldest(Kind.PREFILL)).name, "decode")
                await operator.type("role", (await operator.oldest(Kind.DECODE)).name, "prefill")
                await operator.kill_controller()
                await judge.more(REQUESTS_AT_A_TIME)
            assert [record for record in gentle if not record.ok] == []
            assert len(gentle) > 10 * REQUESTS_AT_A_TIME  # there was load

            judge = Judge(tmp_path / "harsh", port)
            async with judge.watching() as harsh:
                for kind in POOLS:
                    await operator.kill(await operator.oldest(kind))
                    await judge.more(REQUESTS_AT_A_TIME)
            failed = [record for record in harsh if not record.ok]
            assert [record for record in failed if not is_definite(record)] == []
            assert len(failed) <= len(POOLS) * REQUESTS_AT_A_TIME < len(harsh)
            await operator.type("down")
        assert await asyncio.to_thread(up.end) == 0, up.output.read_text()
    assert up.orphans() == []
    assert "nothing is left behind" in up.output.read_text()


def is_definite(record: Record) -> bool:
    """An error that says so, soon after the last sign of life."""
    seen_ms = (record.ttft_ms or 0.0) + sum(record.itl_ms)
    says_so = record.failure == "error_event" or record.failure.startswith("http_5")
    return says_so and record.e2e_ms is not None and record.e2e_ms - seen_ms <= ERROR_TIMEOUT_MS
