"""A whole cluster as plain processes on this machine: one prefill worker, one decode worker, and two routers, of which
one always lets prefill compute the prompt and the other never. Asked over HTTP, as clients do."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import psutil

from diptych.config import RouterConfig, WorkerConfig
from diptych.messages import Role, RouterRecord, WorkerRecord

ROOT = Path(__file__).resolve().parents[2]
MODEL_NAME = "model"
READY_TIMEOUT_S, STOP_TIMEOUT_S, ANSWER_TIMEOUT_S = 120.0, 30.0, 300.0
MAX_TOKENS = 4  # enough that decode draws some, and says what the transfer cost
REMOTE, LOCAL = "always", "never"  # who computes the prompt: `RouterConfig.remote_prefill`

Record = TypeVar("Record", WorkerRecord, RouterRecord)


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt, with nothing else running."""

    ttft_ms: float  # client: request sent to first token received
    exposed_ms: float  # workers: prefill's last token to KV verified at decode; 0 where none moved
    worker_cpu_ms: float  # both workers' processor time, from request to last token


class Cluster:
    """A context manager; entering takes as long as loading the model."""

    def __init__(self, model: Path, redis_url: str, name: str, folder: Path, **worker: Any) -> None:
        """
        Args:
            name: of the cluster: prefix of its Redis keys and log files.
            folder: an existing one, for logs.
            worker: fields of `WorkerConfig`.
        """
        self._shared: dict[str, Any] = {
            "model": str(model),
            "served_model": MODEL_NAME,
            "cluster": name,
            "redis_url": redis_url,
        }
        self._worker = worker
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def ask(self, prompt: list[int], who: str = REMOTE) -> Asked:
        """Stream the answer to a prompt nobody has cached."""
        body = {
            "model": MODEL_NAME,
            "prompt": prompt,
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_report": True,
        }
        cpu_before_s = self._cpu_s()
        first_at, sent_at, report = self._stream(self._doors[who], json.dumps(body).encode())
        cpu_ms = (self._cpu_s() - cpu_before_s) * 1e3
        if (report["reason"] == "remote") != (who == REMOTE) or report["cached_tokens"]:
            raise RuntimeError(f"a prompt was not computed where it should have been: {report}")
        return Asked((first_at - sent_at) * 1e3, report["exposed_ms"], cpu_ms)

    def _stream(self, door: str, body: bytes) -> tuple[float, float, dict[str, Any]]:
        """When the first token came, when the request left (monotonic seconds), and the report at the end."""
        connection = http.client.HTTPConnection(door, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.connect()
            sent_at = time.monotonic()
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"a router answered {answer.status}: {answer.read().decode(errors='replace')}")
            first_at, last = 0.0, b""
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                first_at = first_at or time.monotonic()
                if line.strip() != b"data: [DONE]":
                    last = line
            return first_at, sent_at, json.loads(last.removeprefix(b"data: "))["diptych"]
        finally:
            connection.close()

    def _start(self) -> None:
        workers = {role: WorkerConfig(role=role, **self._shared, **self._worker) for role in Role}
        routers = {
            who: RouterConfig(remote_prefill=who, http_port=0, canary_interval_s=0.0, **self._shared)
            for who in (REMOTE, LOCAL)
        }
        running = {role: self._spawn(f"{role}_worker", config) for role, config in workers.items()}
        doors = {who: self._spawn("router", config, who) for who, config in routers.items()}
        for process in running.values():
            _record(process, WorkerRecord)
        self._workers = [psutil.Process(process.pid) for process in running.values()]
        self._doors = {who: _record(process, RouterRecord).http_address for who, process in doors.items()}
        for door in self._doors.values():
            _wait_healthy(door)

    def _spawn(self, module: str, config: msgspec.Struct, suffix: str = "") -> subprocess.Popen[bytes]:
        log = self._folder / f"{self._shared['cluster']}-{module}{suffix}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", module, msgspec.json.encode(config).decode()],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(self._worker.get("threads", 1))},
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self._stack.callback(_stop, process)
        return process

    def _cpu_s(self) -> float:
        times = [worker.cpu_times() for worker in self._workers]
        return sum(each.user + each.system for each in times)


def _record(process: subprocess.Popen[bytes], kind: type[Record]) -> Record:
    """What a process says of itself when it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} did not start; its log has the reason")
    return msgspec.json.decode(line, type=kind)


def _wait_healthy(door: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(door, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        finally:
            connection.close()
        time.sleep(0.05)
    raise RuntimeError(f"the router at {door} was not healthy within {READY_TIMEOUT_S:g} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
