"""Tokens travel in frames: what one engine step made for one router leaves as one message.

While a router's connection is slower than the engine, updates of later steps join the waiting frame, so memory is
bounded by what the open requests can still produce, and the cost per token falls under load.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from diptych.errors import LegFailed
from diptych.messages import Frame, Update, WorkerStats

HEARTBEAT_S = 1.0  # a frame with nothing but stats: silence means the worker is stopped or cut off


class Subscription:
    """One router's stream."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.wake = asyncio.Event()
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.wake.set()


class Outbox:
    """
    Args:
        stats: the worker's present view of itself.
        on_router_lost: called with the router's id when its stream ends and no newer one took its place.
    """

    def __init__(
        self,
        worker_id: str,
        stats: Callable[[], WorkerStats],
        stats_interval_ms: int,
        on_router_lost: Callable[[str], None],
    ) -> None:
        self._worker_id = worker_id
        self._stats = stats
        self._stats_interval_s = stats_interval_ms / 1e3
        self._on_router_lost = on_router_lost
        self._subscriptions: dict[str, Subscription] = {}

    def require(self, router_id: str) -> None:
        """Refuse work whose tokens nobody would receive.

        Raises:
            LegFailed: the router has no frame stream here.
        """
        if router_id not in self._subscriptions:
            raise LegFailed(f"router {router_id} has no frame stream at {self._worker_id}; it must subscribe first")

    def send(self, router_id: str, updates: Iterable[Update]) -> None:
        """Queue updates for a router; dropped if it is gone (its requests are being aborted)."""
        if (subscription := self._subscriptions.get(router_id)) is not None:
            subscription.updates.extend(updates)
            subscription.wake.set()

    async def frames(self, router_id: str) -> AsyncIterator[Frame]:
        """The router's stream, until it goes or a newer subscription of the same router replaces it."""
        subscription = Subscription()
        if (old := self._subscriptions.get(router_id)) is not None:
            old.close()
            self._on_router_lost(router_id)  # the broken stream may have lost tokens: its requests cannot go on
        self._subscriptions[router_id] = subscription
        try:
            async for frame in self._frames(subscription):
                yield frame
        finally:
            if self._subscriptions.get(router_id) is subscription:
                del self._subscriptions[router_id]
                self._on_router_lost(router_id)

    async def _frames(self, subscription: Subscription) -> AsyncIterator[Frame]:
        loop = asyncio.get_running_loop()
        sequence, stats_due = 0, 0.0
        while subscription.updates or not subscription.closed:  # what was sent before the end is still delivered
            stats = None
            if loop.time() >= stats_due:
                stats, stats_due = self._stats(), loop.time() + self._stats_interval_s
            updates, subscription.updates = subscription.updates, []
            yield Frame(self._worker_id, sequence, updates, stats)
            sequence += 1
            await self._next(subscription, HEARTBEAT_S if stats else self._stats_interval_s)

    async def _next(self, subscription: Subscription, longest_s: float) -> None:
        """Wait for updates, or until fresh stats or a heartbeat are due."""
        try:
            async with asyncio.timeout(longest_s):
                await subscription.wake.wait()
        except TimeoutError:
            return
        subscription.wake.clear()

    def close(self) -> None:
        for subscription in self._subscriptions.values():
            subscription.close()
