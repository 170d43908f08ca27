"""What is made of workers' reports and of what waits before them."""

from __future__ import annotations

import pytest

from deploy.autoscale.meter import PrefillMeter
from deploy.autoscale.settings import AutoscaleSettings
from deploy.autoscale.signals import PoolView, PrefillLoad, Report
from diptych.messages import WorkerStats

LOOK_S = 5.0


class Pool:
    """One prefill worker of 1,000 tokens a second, before which routers hold prompts back."""

    def __init__(self, room: int) -> None:
        self.meter = PrefillMeter(AutoscaleSettings())
        self.room = room  # tokens that may wait in the worker
        self.computed = self.left = 0

    def look(self, turn: int, brought: int) -> PrefillLoad:
        self.left += brought
        computed = min(self.left, int(1_000 * LOOK_S))
        self.computed, self.left = self.computed + computed, self.left - computed
        in_worker = min(self.left, self.room)
        stats = WorkerStats(
            prompt_tokens_computed_total=self.computed,
            waiting_prefill_tokens=in_worker,
            transfers_total=self.computed // 100,
            prefill_tokens_per_s=1_000.0,
        )
        view = PoolView(1, (Report("w", 0.0, stats),), queued_tokens=self.left - in_worker)
        return self.meter.look(turn * LOOK_S, view)[1]


@pytest.mark.parametrize("room", [10**9, 2_000, 0])
def test_it_is_the_same_load_wherever_prompts_wait(room: int) -> None:
    pool = Pool(room)
    loads = [pool.look(turn, brought=8_000) for turn in range(8)]
    assert loads[-1].queued_tokens == 8 * 3_000
    assert loads[-1].arriving_tokens_per_s == pytest.approx(1_600)
    empty = [pool.look(turn, brought=0) for turn in range(8, 24)][-1]  # a queue that is let through is no arrival
    assert (empty.queued_tokens, empty.arriving_tokens_per_s) == (0, 0)
