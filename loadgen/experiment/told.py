"""Being told to stop: SIGTERM does what Ctrl-C does."""

from __future__ import annotations

import asyncio
import signal


def cancel_when_told() -> None:
    """SIGTERM cancels the task that calls this, until its event loop ends. In the main thread only."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
