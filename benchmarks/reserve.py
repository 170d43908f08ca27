"""What it costs to choose and to reserve with other routers: `python -m benchmarks.reserve [--workers N] [--json]`.

Routers are processes of their own, each with the placement a router has, on a fleet of idle workers; Redis is the
embedded Valkey. Each places `--rate` prompts a second for `--seconds`, all of them different; then come bursts of 64
identical new prompts, dealt out to all routers at the same moment. Reported: microseconds of one placement (look-up,
choice, booking, and the round trip where there is another router), how placements were reserved, and how even the
bursts were: the most that one worker was given over the mean, at worst. Run with as many free cores as routers, or
their waiting for a core is taken for Redis being slow. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter, deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.index.timing import reference_loop_us
from deploy.embedded_valkey import EmbeddedValkey
from diptych.background import background
from diptych.membership import connect
from diptych.messages import Role, SamplingParams, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from kv_transfer.hashing import block_hashes, hash_key
from router.attempts import Attempts
from router.bookings import Bookings
from router.explain import ExplainRing
from router.fleet import Compatibility, Fleet
from router.limits import Limits
from router.placement.named import policy_named
from router.placement_metrics import PlacementMetrics
from router.placer import Booked, Placer
from router.prefix_index import PrefixIndex
from router.requests import Report, TokenRequest
from router.sharing.load import SharedLoad, Statements
from router.sharing.log import ReservationLog
from router.sharing.metrics import OUTCOMES, ReservationMetrics
from router.sharing.reservations import Reservations
from router.sharing.talk import Talk
from router.suspects import Suspects
from router.worker_link import WorkerLink

BLOCK_SIZE, PROMPT_TOKENS, OPEN_REQUESTS = 16, 512, 16
BURST, BURSTS, BURST_EVERY_S = 64, 5, 0.5
READY, LEAD_S = b"ready\n", 0.3  # a router says it when it has heard of the others; then all begin so much later
LIMITS = Limits(BLOCK_SIZE, 737_280, 1 << 16, "model", "prefer", 1_000, 3)


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What one router is to do."""

    url: str
    cluster: str
    number: int  # of this router
    of: int
    workers: int
    shares: bool
    rate: float
    seconds: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    took_us: list[float]
    burst_us: list[float]
    given: list[dict[str, int]]  # prompts of each burst, by prefill worker
    outcomes: dict[str, int]
    waited_ms: float  # mean, of those that asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64, help="half of them prefill workers")
    parser.add_argument("--rate", type=float, default=100.0, help="placements a second of each router")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", help="nothing but the last line")
    parser.add_argument("--router", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.router:
        task = msgspec.json.decode(args.router, type=Task)
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_route(task))))
        return
    result: dict[str, Any] = {"workers": args.workers, "rate": args.rate}
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as server:
        for name, count, shares in (("alone", 1, True), ("shared_4", 4, True), ("unshared_4", 4, False)):
            result[name] = asyncio.run(_measure(server.url, name, count, shares, args))
            if not args.json:
                print(_line(name, result[name]), flush=True)
    print(json.dumps({**result, "reference_loop_us": reference_loop_us()}))


def _line(name: str, of: dict[str, Any]) -> str:
    return (
        f"{name:11} p50 {of['p50_us']:.0f} us, p99 {of['p99_us']:.0f} us; in bursts p99 {of['burst_p99_us']:.0f} us; "
        f"bursts at worst {of['max_over_mean']:.2f} of the mean; {of['outcomes']}"
    )


async def _measure(url: str, name: str, count: int, shares: bool, args: argparse.Namespace) -> dict[str, Any]:
    tasks = [
        Task(
            url=url,
            cluster=f"bench-{name}",
            number=number,
            of=count,
            workers=args.workers,
            shares=shares,
            rate=args.rate,
            seconds=args.seconds,
        )
        for number in range(count)
    ]
    routers = [await _start(task) for task in tasks]
    for router in routers:
        assert router.stdout is not None
        if await router.stdout.readline() != READY:
            raise RuntimeError("a router did not start")
    begins_at = str(time.time() + LEAD_S).encode()
    results = await asyncio.gather(*(_finish(router, begins_at) for router in routers))
    took = np.concatenate([each.took_us for each in results])
    p50, p99 = np.percentile(took, (50, 99)).tolist()
    bursts = [sum(map(Counter, each), Counter[str]()) for each in zip(*(each.given for each in results), strict=True)]
    return {
        "p50_us": p50,
        "p99_us": p99,
        "burst_p99_us": float(np.percentile(np.concatenate([each.burst_us for each in results]), 99)),
        "waited_ms": max(each.waited_ms for each in results),
        "max_over_mean": max(max(each.values()) for each in bursts) * (args.workers // 2) / BURST,
        "outcomes": dict(sum((Counter(each.outcomes) for each in results), Counter[str]())),
    }


async def _start(task: Task) -> Process:
    arguments = ["-m", "benchmarks.reserve", "--router", msgspec.json.encode(task).decode()]
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=PIPE, stdout=PIPE)


async def _finish(router: Process, begins_at: bytes) -> Result:
    said, _ = await router.communicate(begins_at)
    if router.returncode:
        raise RuntimeError(f"a router ended with {router.returncode}")
    return msgspec.json.decode(said, type=Result)


# --- one router -------------------------------------------------------------------------------------------------------


async def _route(task: Task) -> Result:
    redis, registry = connect(task.url), CollectorRegistry()
    others = SharedLoad()
    bookings, index = Bookings(others), PrefixIndex()
    metrics = ReservationMetrics(registry, "model")
    log = ReservationLog(redis, task.cluster, f"router-{task.number}")
    talk = Talk(log, Statements(bookings), others, index.guess, metrics.others)
    reservations = Reservations(talk, metrics)
    placer = _placer(task, registry, bookings, index, reservations if task.shares else None)
    async with background(reservations.run(), "reservations", _fail):
        while task.shares and len(others.routers) < task.of - 1:  # noqa: ASYNC110 (they are other processes)
            await asyncio.sleep(0.01)
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        begins_at = float(await asyncio.to_thread(sys.stdin.readline))
        took_us = await _steadily(placer, task, begins_at)
        given, burst_us = await _in_bursts(placer, task, begins_at + task.seconds)
    await redis.aclose()
    return Result(took_us=took_us, burst_us=burst_us, given=given, **_reserved(registry))


def _reserved(registry: CollectorRegistry) -> dict[str, Any]:
    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, {"model_name": "model", **labels}) or 0.0

    counts = {outcome: int(value("diptych_reservations_total", outcome=outcome)) for outcome in OUTCOMES}
    name = "diptych_reservation_wait_seconds"
    waited_ms = 1e3 * value(f"{name}_sum") / max(1.0, value(f"{name}_count"))
    return {"outcomes": {outcome: count for outcome, count in counts.items() if count}, "waited_ms": waited_ms}


async def _steadily(placer: Placer, task: Task, begins_at: float) -> list[float]:
    """One prompt after the other, each of them new."""
    took_us: list[float] = []
    held: deque[Booked] = deque()
    for turn in range(int(task.rate * task.seconds)):
        await asyncio.sleep(max(0.0, begins_at + (turn + task.number / task.of) / task.rate - time.time()))
        request, hashes = _request(task.number * 1_000_000 + turn)
        began = time.perf_counter()
        held.append(await placer.place(request, hashes, Attempts(1), Report()))
        took_us.append(1e6 * (time.perf_counter() - began))
        if len(held) > OPEN_REQUESTS:
            held.popleft().booking.release()
        held[-1 - len(held) // 2].booking.prefilled()
    for booked in held:
        booked.booking.release()
    return took_us


async def _in_bursts(placer: Placer, task: Task, begins_at: float) -> tuple[list[dict[str, int]], list[float]]:
    """This router's share of each burst."""
    given, took_us = [], []
    for number in range(BURSTS):
        request, hashes = _request(-1 - number)
        await asyncio.sleep(max(0.0, begins_at + (number + 1) * BURST_EVERY_S - time.time()))

        async def place(request: TokenRequest = request, hashes: list[bytes] = hashes) -> Booked:
            began = time.perf_counter()
            booked = await placer.place(request, hashes, Attempts(1), Report())
            took_us.append(1e6 * (time.perf_counter() - began))
            return booked

        booked = await asyncio.gather(*(place() for _ in range(BURST // task.of)))
        given.append(dict(Counter(each.placement.prefill_id for each in booked)))
        await asyncio.sleep(BURST_EVERY_S / 2)  # the others have placed theirs as well
        for each in booked:
            each.booking.release()
    return given, took_us


def _placer(
    task: Task, registry: CollectorRegistry, bookings: Bookings, index: PrefixIndex, reservations: Reservations | None
) -> Placer:
    logger = make_logger("benchmark", stream=io.StringIO())
    fleet = Fleet(f"router-{task.number}", Compatibility("model", BLOCK_SIZE), 3.0, logger)
    for role in Role:
        for number in range(task.workers // 2):
            fleet.adopt(_StillLink(_record(role, number)))
            index.add_worker(f"{role}-{number}")
    ring, metrics = ExplainRing(1_024, "min-ttft", LIMITS.remote_prefill), PlacementMetrics(registry, "model")
    policy, seed = policy_named("min-ttft"), 17 * task.number + 1
    return Placer(LIMITS, policy, seed, fleet, index, bookings, Suspects(), ring, metrics, reservations)


class _StillLink(WorkerLink):
    """A link that is up, to nobody."""

    def __init__(self, record: WorkerRecord) -> None:
        self.record, self.connected = record, True
        self.stats = WorkerStats(blocks_free=100_000, prefill_tokens_per_s=10_000.0, decode_step_ms=10.0, num_running=1)


def _record(role: Role, number: int) -> WorkerRecord:
    return WorkerRecord(
        worker_id=f"{role}-{number}",
        role=role,
        address="",
        state=WorkerState.READY,
        model="model",
        fingerprint="model",
        block_size=BLOCK_SIZE,
        num_blocks=100_000,
        block_bytes=737_280,
        max_context=1 << 16,
        started_at=0.0,
    )


def _request(name: int) -> tuple[TokenRequest, list[bytes]]:
    prompt = [abs(name) % 50_000 + 1, abs(name) // 50_000, int(name < 0), *range(PROMPT_TOKENS - 3)]
    request = TokenRequest(f"r{name}", prompt, SamplingParams(max_tokens=64, seed=1))
    return request, block_hashes(hash_key("model"), prompt, BLOCK_SIZE)


def _fail(error: BaseException) -> None:
    raise error


if __name__ == "__main__":
    main()
