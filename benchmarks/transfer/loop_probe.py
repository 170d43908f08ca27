"""How long an event loop was kept from running: a callback that wants to run every millisecond, and looks at the clock.

Time that the thread was ready to run and the kernel ran somebody else instead is taken off (field 2 of Linux'
/proc/thread-self/schedstat, nanoseconds on a run queue): that is the machine's load, not ours. Waiting for the
interpreter lock is ours and stays in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from types import TracebackType

PERIOD_S = 0.001
_SCHEDSTAT = "/proc/thread-self/schedstat"


class LoopProbe:
    """An async context manager; watches the loop it is entered on."""

    def __init__(self) -> None:
        self.num_ticks = 0
        self.longest_stall_s = 0.0
        self._due = 0.0
        self._waited_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stat = -1

    async def __aenter__(self) -> LoopProbe:
        with contextlib.suppress(FileNotFoundError):  # a kernel built without: the machine's load is not taken off
            self._stat = os.open(_SCHEDSTAT, os.O_RDONLY)
        self._waited_s = self._queued_s()
        self._schedule()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._tick_now()
        if self._stat >= 0:
            os.close(self._stat)

    def _schedule(self) -> None:
        self._due = time.monotonic() + PERIOD_S
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._tick)

    def _tick(self) -> None:
        self._tick_now()
        self._schedule()

    def _tick_now(self) -> None:
        late_s = time.monotonic() - self._due
        queued_s = self._queued_s()
        self.num_ticks += 1
        self.longest_stall_s = max(self.longest_stall_s, late_s - (queued_s - self._waited_s))
        self._waited_s = queued_s

    def _queued_s(self) -> float:
        if self._stat < 0:
            return 0.0
        return int(os.pread(self._stat, 128, 0).split()[1]) / 1e9
