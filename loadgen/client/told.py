"""Being told to stop: SIGTERM does what Ctrl-C does."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

INTERRUPTED, TERMINATED = 130, 143  # exit status, as a shell has it for Ctrl-C and for SIGTERM


@dataclass(slots=True)
class Told:
    """What this process was told, if anything."""

    terminated: bool = False  # by SIGTERM

    @property
    def exit_status(self) -> int:
        return TERMINATED if self.terminated else INTERRUPTED


def cancel_when_told(told: Told | None = None) -> None:
    """SIGTERM cancels the task that calls this, until its event loop ends. In the main thread only.

    Args:
        told: where it is noted.
    """
    task = asyncio.current_task()
    assert task is not None
    noted = told or Told()

    def cancel() -> None:
        noted.terminated = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, cancel)
