"""A whole cluster as plain processes on loopback: what `diptych up` starts, without Ray, so that tests start fast and
can kill, stop and inspect each process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import httpx
import msgspec

from diptych.config import RouterConfig, WorkerConfig
from diptych.messages import Role, RouterRecord, WorkerRecord

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Process:
    process: asyncio.subprocess.Process
    record: Any
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@dataclass
class ProcessCluster:
    """
    Args:
        model: a model folder.
        worker: fields of `WorkerConfig` to change.
        router: fields of `RouterConfig` to change.
    """

    model: Path
    redis_url: str
    logs: Path
    prefill: int = 1
    decode: int = 1
    worker: dict[str, Any] = field(default_factory=dict)
    router: dict[str, Any] = field(default_factory=dict)

    async def __aenter__(self) -> ProcessCluster:
        self.name = f"test-{uuid4().hex[:8]}"
        self.workers: list[Process] = []
        self.routers: list[Process] = []
        roles = [Role.PREFILL] * self.prefill + [Role.DECODE] * self.decode
        try:
            self.front, *_ = await asyncio.gather(self.start_router(), *map(self.start_worker, roles))
            self.http = httpx.AsyncClient(base_url=self.base_url, timeout=60, trust_env=False)
            await self.wait_healthy()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if hasattr(self, "http"):
            await self.http.aclose()
        await asyncio.gather(*map(_stop, [*self.routers, *self.workers]))

    @property
    def base_url(self) -> str:
        record: RouterRecord = self.front.record
        return f"http://{record.http_address}"

    def of_role(self, role: Role) -> list[Process]:
        return [worker for worker in self.workers if worker.record.role is role]

    async def start_worker(self, role: Role) -> Process:
        defaults = {"kv_cache_bytes": 8 << 20, "max_batch_tokens": 64, "lease_ms": 1_500}
        config = WorkerConfig(
            role=role,
            model=str(self.model),
            served_model="tiny",
            cluster=self.name,
            redis_url=self.redis_url,
            **{**defaults, **self.worker},
        )
        process = await self._spawn(f"{role}_worker", config, WorkerRecord)
        self.workers.append(process)
        return process

    async def start_router(self, **changes: Any) -> Process:
        """Another router on the same cluster; `changes` are fields of `RouterConfig`."""
        defaults = {"http_port": 0, "canary_interval_s": 0.0, "membership_poll_ms": 50, "lease_ms": 1_500}
        config = RouterConfig(
            model=str(self.model),
            served_model="tiny",
            cluster=self.name,
            redis_url=self.redis_url,
            **{**defaults, **self.router, **changes},
        )
        process = await self._spawn("router", config, RouterRecord)
        self.routers.append(process)
        return process

    async def _spawn(self, module: str, config: Any, record_type: type[Any]) -> Process:
        log = self.logs / f"{module}-{uuid4().hex[:6]}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                msgspec.json.encode(config).decode(),
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            await process.wait()
            raise RuntimeError(f"{module} did not start:\n{log.read_text()}")
        return Process(process, msgspec.json.decode(line, type=record_type), log)

    async def health(self, client: httpx.AsyncClient | None = None) -> dict[str, Any]:
        """What a router (the first one by default) says of itself."""
        answer = await (client or self.http).get("/health")
        detail: dict[str, Any] = answer.json()
        return {"status_code": answer.status_code, **detail}

    async def wait_healthy(self, client: httpx.AsyncClient | None = None) -> None:
        """Until a canary went end to end with all workers there."""
        workers = {"prefill_workers": len(self.of_role(Role.PREFILL)), "decode_workers": len(self.of_role(Role.DECODE))}
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                health = await self.health(client)
                if health["status_code"] == 200 and workers.items() <= health["details"].items():
                    return
                await asyncio.sleep(0.05)

    def text_of_logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.logs.glob("*.log")))


async def _stop(process: Process) -> None:
    if process.process.returncode is not None:
        return
    process.process.send_signal(signal.SIGCONT)
    process.process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.process.wait()
    except TimeoutError:
        await process.kill()
