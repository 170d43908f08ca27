"""The Ray actor that hosts one process of ours. Prefill, decode and router are all hosted the same way.

Ray starts it, places it and reports its death; nothing of a request ever passes through it. What it hosts is a
coroutine `run(config, started, stop)`, named "module:function" and run by an event loop in a thread of its own. Only
bytes, text and numbers cross its methods. Its output goes to a log file.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import ray
import uvloop

from deploy.cluster_config import NODE_HOST, config_type
from deploy.reconcile import Kind

Run = Callable[[Any, Callable[[Any], None], asyncio.Event], Awaitable[None]]

ENTRY_POINTS: dict[str, str] = {
    Kind.PREFILL: "prefill_worker.process:run",
    Kind.DECODE: "decode_worker.process:run",
    Kind.ROUTER: "router.process:run",
}
CONCURRENT_METHODS = 4  # start, wait and stop overlap


class Hosting(msgspec.Struct, frozen=True, kw_only=True):
    """What runs where, once it has started."""

    pid: int
    created_at_s: float  # with the pid: this process and no later one
    node_id: str  # Ray's
    record: msgspec.Raw  # what the process said about itself, JSON


class ProcessHost:
    """One hosted process. Use: `start` once, `wait` for its end, `stop` to end it well.

    None of its methods may be `async`: Ray would then run all of them on one event loop, and `wait` would block `stop`.
    """

    def __init__(self, log_path: str) -> None:
        _redirect_output(Path(log_path))
        faulthandler.enable()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()  # it said so, or it ended
        self._ended = threading.Event()
        self._record: bytes | None = None
        self._failure = ""

    def start(self, entry_point: str, kind: str, config_json: bytes) -> bytes:
        """Run it; returns the JSON of a `Hosting` when it is ready to serve.

        Raises:
            RuntimeError: it ended before it was ready; the message has its traceback.
        """
        thread = threading.Thread(target=self._main, args=(entry_point, Kind(kind), config_json), name="process")
        thread.start()
        self._started.wait()
        if self._record is None:
            raise RuntimeError(self._failure or "it ended without having started")
        process = psutil.Process()
        return msgspec.json.encode(
            Hosting(
                pid=process.pid,
                created_at_s=process.create_time(),
                node_id=ray.get_runtime_context().get_node_id(),
                record=msgspec.Raw(self._record),
            )
        )

    def wait(self) -> None:
        """Return when it ended.

        Raises:
            RuntimeError: it crashed; the message has its traceback.
        """
        self._ended.wait()
        if self._failure:
            raise RuntimeError(self._failure)

    def stop(self) -> None:
        """Ask it to end and wait until it did. It drains first: the caller brings the patience."""
        if self._loop is not None and self._stop is not None and not self._ended.is_set():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._ended.wait()

    def _main(self, entry_point: str, kind: Kind, config_json: bytes) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            await load(entry_point)(config, self._on_started, self._stop)

        try:
            config = msgspec.json.decode(config_json, type=config_type(kind))
            if config.host == NODE_HOST:
                config = msgspec.structs.replace(config, host=ray.util.get_node_ip_address())
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException:  # whatever it is, whoever waits has to hear of it
            self._failure = traceback.format_exc()
            print(self._failure, file=sys.stderr, flush=True)
        finally:
            self._ended.set()
            self._started.set()

    def _on_started(self, record: Any) -> None:
        self._record = msgspec.json.encode(record)
        self._started.set()


def load(entry_point: str) -> Run:
    """The function behind "module:function"."""
    module, _, function = entry_point.partition(":")
    run: Run = getattr(importlib.import_module(module), function)
    return run


def _redirect_output(log_path: Path) -> None:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
