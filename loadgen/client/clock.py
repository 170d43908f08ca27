"""The clock of a run: the machine's monotonic one, so that the processes of a run share it. Seconds."""

from __future__ import annotations

import asyncio
import time

now_s = time.monotonic
MIN_SLEEP_S = 0.0005  # an event loop counts in milliseconds


async def sleep_until(at_s: float) -> None:
    """Never returns early: loops round a timer to a whole millisecond, and half of them down."""
    while (left_s := at_s - now_s()) > 0:  # noqa: ASYNC110 (it waits for a time, not for an event)
        await asyncio.sleep(max(left_s, MIN_SLEEP_S))


class LoopLag:
    """How late the event loop comes to a timer, sampled all through a run."""

    INTERVAL_S = 0.02

    def __init__(self) -> None:
        self.samples_ms: list[float] = []

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        while True:
            due_s = now_s() + self.INTERVAL_S
            await asyncio.sleep(self.INTERVAL_S)
            self.samples_ms.append(round(max(0.0, now_s() - due_s) * 1e3, 3))
