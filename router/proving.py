"""Which workers have proved themselves: a canary went through them end to end, from this router.

Until then a worker gets no request of a client while a proven one of its role is there; where there is none (at the
very first start, or when all others died) it is used all the same, because an unproven worker is better than none.
Nothing un-proves a worker: what happens later is the business of retries, suspects and the worker's own health.

Says which canary to send next. Pure: knows no clock (seconds are given), link or request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from diptych.messages import Role
from router.placement import WorkerView

RETRY_FIRST_S, RETRY_LONGEST_S = 0.25, 10.0  # after a canary that failed; each time twice as long


@dataclass(slots=True)
class _Probed:
    """A worker that has not proved itself."""

    role: Role
    num_failed: int = 0
    not_before_s: float = 0.0
    under_way: bool = False
    reason: str = ""  # why the last canary failed


class Proving:
    def __init__(self) -> None:
        self._unproved: dict[str, _Probed] = {}

    def __len__(self) -> int:
        """Workers that have not proved themselves."""
        return len(self._unproved)

    def joined(self, worker_id: str, role: Role) -> None:
        self._unproved.setdefault(worker_id, _Probed(role))

    def proved(self, worker_id: str) -> None:
        self._unproved.pop(worker_id, None)

    def left(self, worker_id: str) -> None:
        self._unproved.pop(worker_id, None)

    def is_proved(self, worker_id: str) -> bool:
        return worker_id not in self._unproved

    @property
    def reasons(self) -> Mapping[str, str]:
        """Of every worker that is still probed, why the last canary failed; "": none has."""
        return {worker_id: probed.reason for worker_id, probed in self._unproved.items()}

    def usable(self, views: Sequence[WorkerView], through: Collection[str]) -> list[WorkerView]:
        """Where a request may go.

        Args:
            through: of a canary, the workers that it is to prove; nobody else of their roles.
        """
        aimed = {view.role for view in views if view.worker_id in through}
        proven = {view.role for view in views if view.worker_id not in self._unproved}
        return [
            view
            for view in views
            if (
                view.worker_id in through
                if view.role in aimed
                else view.worker_id not in self._unproved or view.role not in proven
            )
        ]

    def next(self, ready: Collection[str], now_s: float) -> tuple[str, ...]:
        """Whom to send a canary through now: a prefill and a decode worker at once, as long as neither has failed; ()
        if nobody is due. It is under way until `failed` or `proved`.

        Args:
            ready: workers that could be placed on.
        """
        due = {
            worker_id: probed
            for worker_id, probed in self._unproved.items()
            if worker_id in ready and not probed.under_way and probed.not_before_s <= now_s
        }
        if not due:
            return ()
        fresh = {probed.role: worker_id for worker_id, probed in due.items() if not probed.num_failed}
        chosen = tuple(fresh.values()) or (next(iter(due)),)
        for worker_id in chosen:
            self._unproved[worker_id].under_way = True
        return chosen

    def failed(self, through: Collection[str], reason: str, now_s: float) -> None:
        """The canary through these did not come back from them; those that have proved themselves do not care."""
        for worker_id in through:
            if (probed := self._unproved.get(worker_id)) is not None:
                delay_s = min(RETRY_FIRST_S * 2.0 ** min(probed.num_failed, 16), RETRY_LONGEST_S)
                probed.num_failed += 1
                probed.not_before_s, probed.under_way, probed.reason = now_s + delay_s, False, reason
