"""The workers this router can place on: who membership shows, whether the link is up, what they last reported.

Knows nothing about prompts. A worker is placeable when it is READY, compatible, and its frame stream is up: a lease
alone proves nothing about health.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from diptych.errors import LegFailed
from diptych.messages import Role, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import Logger
from router.bookings import Bookings
from router.placement import WorkerView
from router.worker_link import WorkerLink


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What a worker must share with this router to be of any use to it."""

    fingerprint: str  # of the model, as this router computed it from the same folder
    block_size: int

    def refusal(self, record: WorkerRecord) -> str:
        """Why this worker cannot be used, or ""."""
        if record.block_size != self.block_size:
            return f"its blocks hold {record.block_size} tokens, this router hashes {self.block_size}"
        if record.fingerprint != self.fingerprint:
            return f"its fingerprint is {record.fingerprint}, this router's model has {self.fingerprint}"
        return ""


class Fleet:
    def __init__(self, router_id: str, compatibility: Compatibility, silence_s: float, log: Logger) -> None:
        self._router_id = router_id
        self._compatibility = compatibility
        self._silence_s = silence_s
        self._log = log
        self._links: dict[str, WorkerLink] = {}
        self._refused: dict[str, str] = {}  # worker id: reason, for /health
        self._lapsed: set[str] = set()  # linked, but without a lease
        self._closing: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()

    def joined(self, record: WorkerRecord) -> None:
        """Membership shows a worker, new or with another state."""
        self._lapsed.discard(record.worker_id)
        if link := self._links.get(record.worker_id):
            link.record = record
        elif reason := self._compatibility.refusal(record):
            if record.worker_id not in self._refused:
                self._log.error("worker_refused", worker=record.worker_id, reason=reason)
            self._refused[record.worker_id] = reason
        else:
            self._log.info("worker_joined", worker=record.worker_id, role=record.role.value)
            self._links[record.worker_id] = WorkerLink(
                record, self._router_id, self._silence_s, self._link_changed, self._log
            )
        self.changed.set()

    def left(self, worker_id: str) -> None:
        """The worker's lease is gone. While its frames still come that says more about Redis than about the worker."""
        self._refused.pop(worker_id, None)
        self._lapsed.add(worker_id)
        self._drop_lapsed()

    def _link_changed(self) -> None:
        self._drop_lapsed()
        self.changed.set()

    def _drop_lapsed(self) -> None:
        """Give up workers that have neither a lease nor a frame stream: their requests end, their links close."""
        for worker_id in list(self._lapsed):
            link = self._links.get(worker_id)
            if link is None or not link.connected:
                self._lapsed.discard(worker_id)
                self._drop(worker_id)

    def _drop(self, worker_id: str) -> None:
        if link := self._links.pop(worker_id, None):
            self._log.info("worker_left", worker=worker_id)
            task = asyncio.create_task(link.close(LegFailed(f"{worker_id} left the cluster")))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self.changed.set()

    def link(self, worker_id: str) -> WorkerLink:
        """The link of a worker placement just chose.

        Raises:
            LegFailed: it left between the choice and now.
        """
        try:
            return self._links[worker_id]
        except KeyError:
            raise LegFailed(f"{worker_id} left the cluster") from None

    def views(self, matches: dict[str, int], bookings: Bookings) -> Iterator[WorkerView]:
        """Every placeable worker; `matches` maps worker id to matched prompt blocks."""
        for worker_id, link in self._links.items():
            record, stats = link.record, link.stats
            if not link.connected or record.state is not WorkerState.READY:
                continue
            spare = stats.blocks_free + stats.blocks_cached
            unused = record.num_blocks - bookings.blocks[worker_id]
            yield WorkerView(
                worker_id=worker_id,
                role=record.role,
                matched_tokens=matches.get(worker_id, 0) * record.block_size,
                queued_prefill_tokens=max(stats.waiting_prefill_tokens, bookings.tokens[worker_id]),
                num_running=max(stats.num_running + stats.num_waiting, bookings.sequences[worker_id]),
                available_blocks=min(spare, unused),
                prefill_tokens_per_s=stats.prefill_tokens_per_s,
                transfer_bytes_per_s=stats.transfer_bytes_per_s,
            )

    def reports(self) -> list[tuple[WorkerRecord, WorkerStats]]:
        """For /metrics: every linked worker with its last report."""
        return [(link.record, link.stats) for link in self._links.values()]

    def num_ready(self, role: Role) -> int:
        return sum(
            link.connected and link.record.role is role and link.record.state is WorkerState.READY
            for link in self._links.values()
        )

    @property
    def num_open(self) -> int:
        """Request legs being delivered; zero at rest."""
        return sum(link.num_open + link.num_tasks for link in self._links.values())

    @property
    def refused(self) -> dict[str, str]:
        return dict(self._refused)

    async def close(self) -> None:
        for worker_id in list(self._links):
            self._drop(worker_id)
        await asyncio.gather(*self._closing, return_exceptions=True)
