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
    """How late the event loop comes to a timer, sampled all through a run.

    While it stands still no timer is looked at, so one long stall would be one sample among many. The timers that
    were to come meanwhile count as well, each with what was left of the stall (as HdrHistogram's
    `recordValueWithExpectedInterval` corrects for coordinated omission).
    """

    INTERVAL_S = 0.02

    def __init__(self) -> None:
        self.samples_ms: list[float] = []

    async def watch(self) -> None:
        """Runs until it is cancelled."""
        while True:
            due_s = now_s() + self.INTERVAL_S
            await asyncio.sleep(self.INTERVAL_S)
            self.add(max(0.0, now_s() - due_s))

    def add(self, lag_s: float) -> None:
        """A timer came so late, and with it those that were due in the meantime."""
        self.samples_ms.append(round(lag_s * 1e3, 3))
        while (lag_s := lag_s - self.INTERVAL_S) > 0:
            self.samples_ms.append(round(lag_s * 1e3, 3))
