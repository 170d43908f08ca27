"""Bodies made ready ahead of time, so that making one does not delay a request or the reading of a token."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from loadgen.client.body import BodyBuilder
from loadgen.client.clock import now_s
from loadgen.client.plan import Planned

READY_BYTES = 64 << 20
SLACK_S = 0.005  # no body is begun when a request is due so soon


class Bodies:
    """In the order of the plan."""

    def __init__(self, planned: Sequence[Planned], builder: BodyBuilder) -> None:
        self._builder = builder
        self._left: Iterator[Planned] = iter(planned)
        self._ready: deque[tuple[Planned, bytes]] = deque()
        self._ready_bytes = 0
        self._at_end = False

    def fill(self) -> None:
        """As many as fit, at once: for the time before a run."""
        while self._make_one():
            pass

    async def fill_until(self, due_s: float) -> None:
        """As many as fit before a request is due; whatever happens in between is handled."""
        while now_s() < due_s - SLACK_S and self._make_one():  # noqa: ASYNC110 (it works, and lets others work)
            await asyncio.sleep(0)

    def next(self) -> tuple[Planned, bytes] | None:
        """The next request; none at the end of the plan."""
        if not self._ready and not self._make_one():
            return None
        planned, body = self._ready.popleft()
        self._ready_bytes -= len(body)
        return planned, body

    def _make_one(self) -> bool:
        if self._at_end or self._ready_bytes >= READY_BYTES:
            return False
        planned = next(self._left, None)
        if planned is None:
            self._at_end = True
            return False
        body = self._builder.build(planned)
        self._ready.append((planned, body))
        self._ready_bytes += len(body)
        return True
