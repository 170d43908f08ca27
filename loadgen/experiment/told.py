"""Whether the end of a generator's process is an error, or the first sign of a signal to the whole group."""

from __future__ import annotations

import asyncio

SAME_SIGNAL_S = 0.5  # between what two processes notice of one signal to their group


async def was_told() -> bool:
    """Whether this task is cancelled, or is about to be: a signal to a whole group ends the generator's processes as
    well, and their end may be noticed first."""
    task = asyncio.current_task()
    assert task is not None
    try:
        await asyncio.sleep(SAME_SIGNAL_S)
    except asyncio.CancelledError:
        return True
    return bool(task.cancelling())
