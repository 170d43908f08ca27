"""Drains, scaling, changes of role and replacements of a whole cluster under steady load.

    python tests/chaos/drain.py --operations 100

Starts `diptych up` with a tiny random model and operates it through its admin door while clients stream greedy answers,
each of which is compared with what a single engine says. Ends with one line of JSON; the exit code is 0 if no client
saw an error and nothing outlived the cluster. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from reference import Reference, random_prompt  # noqa: E402
from steady_load import Question, SteadyLoad  # noqa: E402
from tiny_model import make_tiny_model  # noqa: E402
from up_process import UpProcess, free_port  # noqa: E402

from deploy.api import Admin  # noqa: E402
from deploy.reconcile import Kind, State  # noqa: E402
from deploy.status import ClusterStatus, ProcessStatus  # noqa: E402
from deploy.wanted import POOLS  # noqa: E402

MOST = 3  # workers of a pool: a small machine has to hold them
WHOLE_TIMEOUT_S = 120.0
REQUESTS_BETWEEN = 5  # that end between two operations
QUESTIONS = (
    (40, 60),
    (200, 300),
    (24, 700),
    (130, 1_500),
)  # prompt tokens and answer tokens; the last outlives a drain
# A busy test machine may well hold a process up for seconds: that is not what is tried here.
DESCRIPTION = """
model = "{model}"
name = "chaos"
[prefill]
count = 2
[prefill.options]
kv_cache_bytes = 8388608
max_batch_tokens = 64
[decode]
count = 2
[decode.options]
kv_cache_bytes = 33554432
[router]
http_port = {port}
[router.options]
silence_ms = 15000
[limits]
drain_timeout_s = 2
start_timeout_s = 240
replace_after_s = 60
"""


class Operations:
    """One method per kind of operation; each returns when its effect is there."""

    def __init__(self, admin: Admin, rng: random.Random) -> None:
        self._admin = admin
        self._rng = rng

    async def drain_prefill(self) -> None:
        await self._call(self._admin.drain, (await self._any(Kind.PREFILL)).name)

    async def drain_decode(self) -> None:
        await self._call(self._admin.drain, (await self._any(Kind.DECODE)).name)

    async def scale(self) -> None:
        """One pool grows or shrinks."""
        wanted = (await self._status()).wanted
        pool = self._rng.choice(POOLS)
        count = self._rng.choice([count for count in range(1, MOST + 1) if count != wanted[pool]])
        await asyncio.to_thread(self._admin.scale, **{pool.value: count})

    async def role(self) -> None:
        """A worker of the larger pool becomes one of the other."""
        wanted = (await self._status()).wanted
        source, target = sorted(POOLS, key=lambda kind: -wanted[kind])
        if wanted[source] < 2:
            await asyncio.to_thread(self._admin.scale, **{source.value: 2})
        await self._call(self._admin.change_role, (await self._any(source)).name, target)

    async def kill_controller(self) -> None:
        """SIGKILL; another takes over without touching a worker."""
        before = await self._status()
        os.kill(before.controller_pid, signal.SIGKILL)
        after = await self._whole(lambda status: status.controller_pid != before.controller_pid)
        if {process.pid for process in before.processes} - {process.pid for process in after.processes}:
            raise AssertionError("the controller's death cost a worker")

    async def kill_worker(self) -> None:
        """SIGKILL; it is replaced, and its requests go on elsewhere."""
        victim = await self._any(self._rng.choice(POOLS))
        os.kill(victim.pid, signal.SIGKILL)
        await self._whole(lambda status: status.find(victim.id) is None)

    async def _any(self, kind: Kind) -> ProcessStatus:
        running = [process for process in (await self._status()).of(kind) if process.state is State.RUNNING]
        return self._rng.choice(running)

    async def _status(self) -> ClusterStatus:
        return await asyncio.to_thread(self._admin.status)

    async def _whole(self, holds: Callable[[ClusterStatus], bool]) -> ClusterStatus:
        deadline = time.monotonic() + WHOLE_TIMEOUT_S
        while True:
            status = await self._status()
            seen = all(status.placeable.get(kind) == status.wanted[kind] for kind in POOLS)
            if status.complete and seen and holds(status):
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"not whole within {WHOLE_TIMEOUT_S:g} s: {status}")
            await asyncio.sleep(0.1)

    async def _call(self, verb: Callable[..., object], *arguments: object) -> None:
        await asyncio.to_thread(verb, *arguments)


def cycle(operations: Operations) -> list[Callable[[], Awaitable[None]]]:
    """Every kind of operation, the gentle ones more often."""
    o = operations
    return [
        o.drain_decode,
        o.role,
        o.drain_prefill,
        o.scale,
        o.kill_controller,
        o.drain_decode,
        o.scale,
        o.role,
        o.kill_worker,
    ]


async def run(num_operations: int, num_clients: int, seed: int, folder: Path) -> dict[str, object]:
    model = make_tiny_model(folder / "tiny")
    reference = Reference(model)
    questions = [
        Question(prompt := random_prompt(length, index), reference.tokens(prompt, answer))
        for index, (length, answer) in enumerate(QUESTIONS)
    ]
    port = free_port()
    description = folder / "cluster.toml"
    description.write_text(DESCRIPTION.format(model=model, port=port))
    up = UpProcess(folder, "--config", str(description), "--max-tokens", "8")
    done: Counter[str] = Counter()
    failures: list[str] = []
    load = SteadyLoad(f"http://127.0.0.1:{port}", "tiny", questions, num_clients, seed)
    try:
        await up.wait_ready()
        with up.admin() as admin:
            admin.say = lambda text: print(f"    {text}", file=sys.stderr, flush=True)
            steps = cycle(Operations(admin, random.Random(seed)))
            async with load:
                for index in range(num_operations):
                    step = steps[index % len(steps)]
                    load.during = step.__name__
                    print(f"{index + 1}/{num_operations} {load.during}", file=sys.stderr, flush=True)
                    await load.more(REQUESTS_BETWEEN)
                    await step()
                    done[load.during] += 1
                    up.look()
                await load.more(REQUESTS_BETWEEN)
            await asyncio.to_thread(admin.down)
    except Exception as error:  # the line of JSON tells it as well
        failures.append(repr(error))
    finally:
        if up.process.poll() is None and failures:
            up.look()
            up.process.send_signal(signal.SIGINT)
        exit_code = await asyncio.to_thread(up.end)
    if exit_code:
        failures.append(f"diptych up ended with {exit_code}: {up.output.read_text()[-2_000:]}")
    orphans = up.orphans()
    return {
        "operations": done.total(),
        "client_errors": len(load.seen.errors),
        "orphans": len(orphans),
        "longest_stall_ms": round(load.seen.longest_stall_ms),
        "longest_stall_during": load.seen.stalled_during,
        "requests": load.seen.num_requests,
        "tokens": load.seen.num_tokens,
        "handed_over": _handed_over(folder),  # streams that a drain's deadline ended and another worker went on with
        "by_operation": done,
        "errors": load.seen.errors[:5] + orphans[:5] + failures,
    }


def _handed_over(folder: Path) -> int:
    return sum(log.read_text(errors="replace").count("code=draining") for log in folder.rglob("logs/*/*.log"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Operate a cluster under load; see the module's docstring.")
    parser.add_argument("--operations", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-drain-") as folder:
        result = asyncio.run(run(arguments.operations, arguments.clients, arguments.seed, Path(folder)))
    print(json.dumps(result), flush=True)
    return int(bool(result["client_errors"] or result["orphans"] or result["errors"]))


if __name__ == "__main__":
    sys.exit(main())
