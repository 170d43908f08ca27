"""Waiting for what another process will do, bounded: the one place where tests of processes look again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Seen = TypeVar("Seen")

POLL_S = 0.01
PROCESS_POLL_S = 0.1  # of what takes seconds, and costs something to look at
TIMEOUT_S = 30.0


async def until(
    holds: Callable[[], Awaitable[bool]], what: str | Callable[[], str], timeout_s: float = TIMEOUT_S
) -> None:
    """Return when `holds` does.

    Raises:
        AssertionError: it does not within `timeout_s`; the message says `what`, as it is then.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                if await holds():
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        said = what if isinstance(what, str) else what()
        raise AssertionError(f"not within {timeout_s:g} s: {said}") from None


def look_until(look: Callable[[], Seen], holds: Callable[[Seen], bool], timeout_s: float) -> Seen:
    """What was seen when it held, where there is no loop. Either may assert that it can still come true.

    Raises:
        AssertionError: it does not within `timeout_s`; the message has what was seen last.
    """
    deadline = time.monotonic() + timeout_s
    while not holds(seen := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {seen}"
        time.sleep(PROCESS_POLL_S)
    return seen
