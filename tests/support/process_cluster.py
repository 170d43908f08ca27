"""A whole cluster as plain processes on loopback: what `diptych up` starts, without Ray, so that tests start fast and
can kill, stop and inspect each process."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import httpx
from processes import Process, spawn, stop
from scrape import Samples, scrape
from waiting import until

from diptych.config import RouterConfig, WorkerConfig
from diptych.messages import Role, RouterRecord, Subscribe, WorkerRecord, WorkerStats
from diptych.rpc import FRAMES, WorkerStub

READY_TIMEOUT_S = 60.0
QUIET_TIMEOUT_S = 30.0
AT_REST = ("requests", "queued", "bookings", "open_legs")  # of /health: zero when nothing runs
AVAILABLE = ("blocks_free", "blocks_cached")
IDLE = ("num_running", "num_waiting", "num_loading", "num_held", "waiting_prefill_tokens")  # of its stats
ACCIDENTS = ("Traceback", "was never retrieved", "was never awaited", "was destroyed but it is pending")
REPORTED = {  # series of /metrics, and the fields of a worker's stats they are made of
    "diptych_prompt_tokens_total": tuple(
        f"prompt_tokens_{source}_total" for source in ("computed", "cached", "transferred")
    ),
    "diptych_worker_generated_tokens_total": ("generated_tokens_total",),
    "diptych_transfers_total": ("transfers_total",),
    "diptych_transfer_bytes_total": ("transfer_bytes_total",),
    "diptych_steps_total": ("steps_total",),
}
HELD = tuple(f"blocks_{state}" for state in ("used", "reserved", "in_flight", "quarantined"))


@dataclass
class ProcessCluster:
    """
    Args:
        model: a model folder.
        worker: fields of `WorkerConfig` to change.
        by_role: the same, for one role only.
        router: fields of `RouterConfig` to change.
        before: what is put before the commands of one role's workers, e.g. to run them on another host.
    """

    model: Path
    redis_url: str
    logs: Path
    prefill: int = 1
    decode: int = 1
    worker: dict[str, Any] = field(default_factory=dict)
    by_role: dict[Role, dict[str, Any]] = field(default_factory=dict)
    router: dict[str, Any] = field(default_factory=dict)
    before: dict[Role, tuple[str, ...]] = field(default_factory=dict)

    async def __aenter__(self) -> ProcessCluster:
        self.name = f"test-{uuid4().hex[:8]}"
        self.workers: list[Process] = []
        self.routers: list[Process] = []
        self.killed: list[Process] = []
        self._clients: dict[str, httpx.AsyncClient] = {}  # by router id
        self._stubs: dict[str, WorkerStub] = {}
        roles = [Role.PREFILL] * self.prefill + [Role.DECODE] * self.decode
        try:
            self.front, *_ = await asyncio.gather(self.start_router(), *map(self.start_worker, roles))
            self.http = self.client(self.front)
            await self.wait_healthy()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            await client.aclose()
        for stub in self._stubs.values():
            await stub.close()
        statuses = await asyncio.gather(*map(stop, [*self.routers, *self.workers]))
        logs = self.text_of_logs()
        print(logs)  # pytest shows it where a test failed
        if error is None:
            assert not any(statuses), "a process did not stop in time, or failed"
            assert not [sign for sign in ACCIDENTS if sign in logs], "a process reported what it should have handled"

    @property
    def base_url(self) -> str:
        record: RouterRecord = self.front.record
        return f"http://{record.http_address}"

    @property
    def grpc_address(self) -> str:
        record: RouterRecord = self.front.record
        return record.grpc_address

    def of_role(self, role: Role) -> list[Process]:
        return [worker for worker in self.workers if worker.record.role is role]

    async def start_worker(self, role: Role) -> Process:
        """One more worker, or a replacement; `wait_healthy` tells when the router has taken it in."""
        defaults = {"kv_cache_bytes": 8 << 20, "max_batch_tokens": 64, "lease_ms": 1_500}
        config = WorkerConfig(
            role=role,
            model=str(self.model),
            served_model="tiny",
            cluster=self.name,
            redis_url=self.redis_url,
            **{**defaults, **self.worker, **self.by_role.get(role, {})},
        )
        process = await spawn(f"{role}_worker", config, WorkerRecord, self.logs, self.before.get(role, ()))
        self.workers.append(process)
        return process

    async def start_router(self, **changes: Any) -> Process:
        """Another router on the same cluster; `changes` are fields of `RouterConfig`."""
        defaults = {
            "http_port": 0,
            "canary_interval_s": 0.0,
            "membership_poll_ms": 50,
            "lease_ms": 1_500,
            "redis_url": self.redis_url,
        }
        config = RouterConfig(
            model=str(self.model),
            served_model="tiny",
            cluster=self.name,
            **{**defaults, **self.router, **changes},
        )
        process = await spawn("router", config, RouterRecord, self.logs)
        self.routers.append(process)
        return process

    async def add_router(self, **changes: Any) -> httpx.AsyncClient:
        """`start_router`, and a client of it once it is healthy."""
        client = self.client(await self.start_router(**changes))
        await self.wait_healthy(client)
        return client

    def client(self, router: Process) -> httpx.AsyncClient:
        """The client of one router, closed with the cluster."""
        record: RouterRecord = router.record
        if record.router_id not in self._clients:
            limits, url = httpx.Limits(max_connections=None), f"http://{record.http_address}"
            self._clients[record.router_id] = httpx.AsyncClient(
                base_url=url, timeout=60, limits=limits, trust_env=False
            )
        return self._clients[record.router_id]

    async def kill(self, process: Process) -> None:
        """SIGKILL, reaped when this returns. The cluster forgets it; membership does not, until its lease ends."""
        await process.kill()
        self.killed.append(process)
        (self.workers if process in self.workers else self.routers).remove(process)

    async def stats(self, worker: Process) -> WorkerStats:
        """What a worker says of itself right now, asked directly: what /metrics shows may be a second old."""
        record: WorkerRecord = worker.record
        stub = self._stubs.setdefault(record.worker_id, WorkerStub(record.address))
        async with aclosing(stub.stream(FRAMES, Subscribe(f"observer-{uuid4().hex}"))) as frames:
            stats = (await anext(frames)).stats
        assert stats is not None, "a subscription's first frame has stats"
        return stats

    async def metrics(self, client: httpx.AsyncClient | None = None) -> Samples:
        return await scrape(client or self.http)

    async def settled_metrics(self) -> Samples:
        """/metrics when nothing runs and every worker's last report has reached the router."""
        await self.wait_quiet()
        samples = await self.metrics()

        async def reported() -> bool:
            nonlocal samples
            samples = await self.metrics()
            stats = {worker.record.worker_id: await self.stats(worker) for worker in self.workers}
            return all(
                samples.value(name, worker=worker_id) == sum(getattr(told, field) for field in fields)
                for worker_id, told in stats.items()
                for name, fields in REPORTED.items()
            )

        await until(reported, "/metrics shows what the workers say")
        return samples

    async def leftovers(self) -> dict[str, dict[str, int]]:
        """What is still held for requests, by process; empty at rest."""
        left: dict[str, dict[str, int]] = {}
        for router in self.routers:
            health = (await self.health(self.client(router)))["details"]
            left[router.record.router_id] = {name: health[name] for name in AT_REST if health[name]}
        for worker in self.workers:
            stats = await self.stats(worker)
            held = {name: getattr(stats, name) for name in (*IDLE, *HELD)}
            held["blocks_lost"] = stats.blocks_total - sum(getattr(stats, name) for name in (*AVAILABLE, *HELD))
            left[worker.record.worker_id] = {name: count for name, count in held.items() if count}
        return {name: held for name, held in left.items() if held}

    async def wait_quiet(self, timeout_s: float = QUIET_TIMEOUT_S) -> None:
        """Until nothing is left of any request, on any router or worker: every block is free or cached.

        Raises:
            AssertionError: something is still held after `timeout_s`; it says what.
        """
        left: dict[str, dict[str, int]] = {}

        async def quiet() -> bool:
            nonlocal left
            left = await self.leftovers()
            return not left

        await until(quiet, lambda: f"quiet, but there is {left or 'a process that does not answer'}", timeout_s)

    async def health(self, client: httpx.AsyncClient | None = None) -> dict[str, Any]:
        """What a router (the first one by default) says of itself."""
        answer = await (client or self.http).get("/health")
        detail: dict[str, Any] = answer.json()
        return {"status_code": answer.status_code, **detail}

    async def wait_healthy(self, client: httpx.AsyncClient | None = None) -> None:
        """Until a canary went end to end with all workers there."""
        workers = {"prefill_workers": len(self.of_role(Role.PREFILL)), "decode_workers": len(self.of_role(Role.DECODE))}
        health: dict[str, Any] = {}

        async def healthy() -> bool:
            nonlocal health
            health = await self.health(client)
            return health["status_code"] == 200 and workers.items() <= health["details"].items()

        await until(healthy, lambda: f"healthy with {workers}, but {health}", READY_TIMEOUT_S)

    def text_of_logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.logs.glob("*.log")))
