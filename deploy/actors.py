"""The Ray actor that hosts one process of ours. Prefill, decode and router are all hosted the same way.

Ray starts it, places it and reports its death; nothing of a request ever passes through it. What it hosts is a
coroutine `run(config, started, stop)`, named "module:function" and run by an event loop in a thread of its own. Only
bytes, text and numbers cross its methods. Its output goes to a log file.

It outlives the controller that started it, which another one takes over. If none asks after it for too long, it drains
and ends by itself: nothing is left running that nobody looks after.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import ray
import uvloop

from deploy.cluster_config import NODE_HOST
from deploy.process_config import config_type
from deploy.reconcile import Kind
from deploy.status import Hosting

Run = Callable[[Any, Callable[[Any], None], asyncio.Event], Awaitable[None]]

ENTRY_POINTS: dict[str, str] = {
    Kind.PREFILL: "prefill_worker.process:run",
    Kind.DECODE: "decode_worker.process:run",
    Kind.ROUTER: "router.process:run",
}
CONCURRENT_METHODS = 8  # calls overlap, and those of a controller that was killed still take their time
GUARD_INTERVAL_S = 1.0


class ProcessHost:
    """One hosted process. Use: `start`, `ready` until it is, `wait` until it has ended, `stop` to end it well.

    Every call is short: a controller that is killed leaves none behind that blocks. None of its methods may be `async`:
    Ray would then run all of them on one event loop.
    """

    def __init__(self, log_path: str, orphan_timeout_s: float, drain_patience_s: float) -> None:
        """
        Args:
            drain_patience_s: that it may take to end when it has found that nobody asks.
        """
        _redirect_output(Path(log_path))
        faulthandler.enable()
        self._orphan_timeout_s = orphan_timeout_s
        self._drain_patience_s = drain_patience_s
        self._unasked_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._started = threading.Event()  # it said so, or it ended
        self._ended = threading.Event()
        self._record: bytes | None = None
        self._failure = ""
        threading.Thread(target=self._guard, name="guard", daemon=True).start()

    def start(self, entry_point: str, kind: str, config_json: bytes) -> bytes:
        """Run it, once however often it is asked for; returns the JSON of a `Hosting` at once."""
        self._unasked_s = 0.0
        with self._starting:
            if self._thread is None:
                arguments = (entry_point, Kind(kind), config_json)
                self._thread = threading.Thread(target=self._main, args=arguments, name="process")
                self._thread.start()
        process, context = psutil.Process(), ray.get_runtime_context()
        return msgspec.json.encode(
            Hosting(
                pid=process.pid,
                created_at_s=process.create_time(),
                node_id=context.get_node_id(),
                node=ray.util.get_node_ip_address(),
            )
        )

    def ready(self, timeout_s: float) -> bytes:
        """What it said about itself when it was ready to serve, JSON; empty if it is not within `timeout_s`.

        Raises:
            RuntimeError: it ended before it was ready; the message has its traceback.
        """
        self._unasked_s = 0.0
        if not self._started.wait(timeout_s):
            return b""
        if self._record is None:
            raise RuntimeError(self._failure or "it ended without having started")
        return self._record

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, waiting for that.

        Raises:
            RuntimeError: it crashed; the message has its traceback.
        """
        self._unasked_s = 0.0
        ended = self._ended.wait(timeout_s)
        if self._failure:
            raise RuntimeError(self._failure)
        return ended

    def stop(self) -> None:
        """Ask it to end; it drains first, and `wait` sees the end."""
        self._unasked_s = 0.0
        if self._loop is not None and self._stop is not None and not self._ended.is_set():
            with contextlib.suppress(RuntimeError):  # its loop has just closed
                self._loop.call_soon_threadsafe(self._stop.set)

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
        # What is here now, libraries above all, stays: looking through it for garbage again and again would stall the
        # event loop, each time for tens of milliseconds.
        gc.collect()
        gc.freeze()
        self._record = msgspec.json.encode(record)
        self._started.set()

    def _guard(self) -> None:
        """Drain and end when nobody has asked for too long, be it that the controller is gone for good or cut off.
        Nobody is left to kill what does not drain, so it ends all the same."""
        while self._unasked_s < self._orphan_timeout_s:
            time.sleep(GUARD_INTERVAL_S)
            self._unasked_s += GUARD_INTERVAL_S  # of this process' own time: whoever was stopped could not be asked
        print(f"no controller has asked for {self._orphan_timeout_s:g} s: ending", file=sys.stderr, flush=True)
        deadline_s = time.monotonic() + self._drain_patience_s
        ended = self._thread is None
        while not ended and time.monotonic() < deadline_s:
            self.stop()
            ended = self._ended.wait(GUARD_INTERVAL_S)
        os._exit(0 if ended else 1)  # the actor's own way of ending needs a call from outside


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
