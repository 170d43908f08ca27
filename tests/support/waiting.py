"""Waiting for what another process will do, bounded: the one place where tests of processes look again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

POLL_S = 0.01
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
