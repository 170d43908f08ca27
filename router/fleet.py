"""The workers this router can place on: who membership shows, whether the link is up, what they last reported.

Knows nothing about prompts. A worker is placeable when it is READY, compatible, and its frame stream is up: a lease
alone proves nothing about health.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from diptych.errors import LegFailed
from diptych.messages import Role, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import Logger
from diptych.tls import ClusterTls
from router.bookings import Bookings, Load
from router.placement import Link, WorkerView
from router.placement.views import best_of
from router.proving import Proving
from router.step_fit import StepFit
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


@dataclass(slots=True)
class _Made:
    """A worker's view, and what it was made from: most are the same from one placement to the next."""

    record: WorkerRecord
    stats: WorkerStats
    best_link: Link
    view: WorkerView


class Fleet:
    def __init__(
        self,
        router_id: str,
        compatibility: Compatibility,
        silence_s: float,
        log: Logger,
        tls: ClusterTls | None = None,
    ) -> None:
        self._router_id = router_id
        self._compatibility = compatibility
        self._silence_s = silence_s
        self._log = log
        self._tls = tls
        self._links: dict[str, WorkerLink] = {}
        self._refused: dict[str, str] = {}  # worker id: reason, for /health
        self._lapsed: set[str] = set()  # linked, but without a lease
        self._closing: set[asyncio.Task[None]] = set()
        self._made: dict[str, _Made] = {}
        self._step_fits: dict[str, StepFit] = {}
        self.proving = Proving()
        self.changed = asyncio.Event()
        self.on_room: Callable[[], None] = lambda: None  # called when workers have come, gone or reported

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
            self.adopt(WorkerLink(record, self._router_id, self._silence_s, self._link_changed, self._log, self._tls))
        self._note_change()

    def adopt(self, link: WorkerLink) -> None:
        """Place on this link's worker from now on."""
        self._links[link.record.worker_id] = link
        self.proving.joined(link.record.worker_id, link.record.role)
        link.on_report = self._reported

    def left(self, worker_id: str) -> None:
        """The worker's lease is gone. While its frames still come that says more about Redis than about the worker."""
        self._refused.pop(worker_id, None)
        self._lapsed.add(worker_id)
        self._drop_lapsed()

    def _link_changed(self) -> None:
        self._drop_lapsed()
        self._note_change()

    def _note_change(self) -> None:
        self.changed.set()
        self.on_room()

    def _reported(self) -> None:
        self.on_room()

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
            self._made.pop(worker_id, None)
            self._step_fits.pop(worker_id, None)
            self.proving.left(worker_id)
            task = asyncio.create_task(link.close(LegFailed(f"{worker_id} left the cluster")))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._note_change()

    def link(self, worker_id: str) -> WorkerLink:
        """The link of a worker placement just chose.

        Raises:
            LegFailed: it left between the choice and now.
        """
        try:
            return self._links[worker_id]
        except KeyError:
            raise LegFailed(f"{worker_id} left the cluster") from None

    def views(self, bookings: Bookings, through: Collection[str] = ()) -> list[WorkerView]:
        """Every worker that a request may be placed on, as it is now.

        Args:
            through: as `Proving.usable` has it.
        """
        views, rebooked = [], bookings.take_changed()
        for worker_id, link in self._links.items():
            if link.connected and link.record.state is WorkerState.READY:
                made = self._made.get(worker_id)
                fresh = made and made.stats is link.stats and made.record is link.record and worker_id not in rebooked
                if made is None or not fresh:
                    made = self._made[worker_id] = self._make(link, bookings.load(worker_id), made)
                views.append(made.view)
            elif worker_id in rebooked:
                self._made.pop(worker_id, None)
        all_alike = len(self.proving) in (0, len(self._links))
        return views if all_alike and not through else self.proving.usable(views, through)

    def _make(self, link: WorkerLink, load: Load, before: _Made | None) -> _Made:
        record, stats = link.record, link.stats
        fit = self._step_fits.setdefault(record.worker_id, StepFit())
        fit.note(stats.num_running, stats.decode_step_ms)
        best_link = before.best_link if before and before.stats is stats else best_of(stats.links)
        view = WorkerView(
            worker_id=record.worker_id,
            role=record.role,
            matched_tokens=0,
            queued_prefill_tokens=max(stats.waiting_prefill_tokens, load.tokens),
            num_running=max(stats.num_running + stats.num_waiting, load.sequences),
            available_blocks=min(stats.blocks_free + stats.blocks_cached, record.num_blocks - load.blocks),
            prefill_tokens_per_s=stats.prefill_tokens_per_s,
            transfer_bytes_per_s=stats.transfer_bytes_per_s,
            links=stats.links,
            best_link=best_link,
            chunk_tokens=stats.step_budget,
            decode_base_ms=fit.base_ms,
            decode_ms_per_sequence=fit.ms_per_sequence,
            max_running=stats.max_running,
        )
        return _Made(record, stats, best_link, view)

    def is_placeable(self, worker_id: str) -> bool:
        link = self._links.get(worker_id)
        return link is not None and link.connected and link.record.state is WorkerState.READY

    def reports(self) -> list[tuple[WorkerRecord, WorkerStats]]:
        """For /metrics: every linked worker with its last report."""
        return [(link.record, link.stats) for link in self._links.values()]

    def num_proved(self, role: Role) -> int:
        """Placeable workers of a role that a canary went through."""
        return sum(map(self.proving.is_proved, self.ready(role)))

    def num_ready(self, role: Role) -> int:
        return len(self.ready(role))

    def ready(self, role: Role) -> list[str]:
        """Ids of the placeable workers of a role."""
        return [
            worker_id
            for worker_id, link in self._links.items()
            if link.record.role is role and self.is_placeable(worker_id)
        ]

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
