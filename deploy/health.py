"""Whether a process gets anywhere: judged by its steps and its silence, not by whether it answers. Pure.

A worker that has sequences to compute and whose step counter stands still is stuck, however promptly it answers. One
that sends nothing counts as gone only if its lease has ended too: two witnesses, because a broken path between it and
the observer looks the same from here. Time that the observer itself lost (it was stopped, the machine was busy) is not
held against anyone. Knows no clock, socket or Redis.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.reconcile import Health
from diptych.messages import WorkerStats


@dataclass(slots=True)
class Vitals:
    """Of one process. Ages are seconds of the observer's own time."""

    silent_s: float = 0.0  # since it was last heard of
    stalled_s: float = 0.0  # since it last made a step, while it had something to compute
    lapsed: bool = False  # membership says that its lease has ended; unknown is False
    stats: WorkerStats | None = None

    def age(self, elapsed_s: float) -> None:
        """So much time has passed."""
        self.silent_s += elapsed_s
        if self.stats is not None and has_work(self.stats):
            self.stalled_s += elapsed_s

    def heard(self, stats: WorkerStats | None = None) -> None:
        """It said something; a worker says how far it is."""
        self.silent_s = 0.0
        if stats is None:
            return
        if self.stats is None or stats.steps_total != self.stats.steps_total or not has_work(stats):
            self.stalled_s = 0.0
        self.stats = stats

    def judge(self, suspect_after_s: float, replace_after_s: float) -> Health:
        trouble_s = max(self.stalled_s, self.silent_s if self.lapsed else 0.0)
        if trouble_s >= replace_after_s:
            return Health.LOST
        return Health.SUSPECT if max(trouble_s, self.silent_s) >= suspect_after_s else Health.OK


def has_work(stats: WorkerStats) -> bool:
    """Whether there is something that the next step would compute.

    What waits while KV is on its way, being pushed or quarantined may be waiting for those blocks: its peer or its
    deadline ends that, and steps do not.
    """
    if stats.num_running:
        return True
    return bool(stats.num_waiting) and not (stats.num_loading or stats.num_held or stats.blocks_quarantined)
