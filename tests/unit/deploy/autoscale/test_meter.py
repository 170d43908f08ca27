"""What is made of workers' reports and of what waits before them."""

from __future__ import annotations

import pytest

from deploy.autoscale.meter import PrefillMeter, num_asking
from deploy.autoscale.settings import AutoscaleSettings
from deploy.autoscale.signals import PoolView, PrefillLoad, Report
from diptych.messages import WorkerStats

LOOK_S = 5.0


class Pool:
    """One prefill worker of 1,000 tokens a second; prompts of 100 tokens are held back before it."""

    def __init__(self, room: int, asking: bool = False) -> None:
        self.meter = PrefillMeter(AutoscaleSettings())
        self.room = room  # tokens that may wait in the worker
        self.asking = asking  # whether the others have left the router, and wait for decode's blocks
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
        held_back = self.left - in_worker
        view = PoolView(1, (Report("w", 0.0, stats),), queued_tokens=0 if self.asking else held_back)
        return self.meter.look(turn * LOOK_S, view, held_back / 100 if self.asking else 0.0)[1]


@pytest.mark.parametrize("room", [10**9, 2_000, 0])
def test_it_is_the_same_load_wherever_prompts_wait(room: int) -> None:
    pool = Pool(room)
    loads = [pool.look(turn, brought=8_000) for turn in range(8)]
    assert loads[-1].queued_tokens == 8 * 3_000
    assert loads[-1].arriving_tokens_per_s == pytest.approx(1_600)
    empty = [pool.look(turn, brought=0) for turn in range(8, 24)][-1]  # a queue that is let through is no arrival
    assert (empty.queued_tokens, empty.arriving_tokens_per_s) == (0, 0)


def test_prompts_that_wait_for_decode_arrive_once() -> None:
    """They count when they come, not when decode lets them through; only their backlog is not prefill's."""
    pool = Pool(room=2_000, asking=True)
    for turn in range(3):
        pool.look(turn, brought=5_000)  # how long a prompt is has to be seen first
    loads = [pool.look(turn, brought=8_000) for turn in range(3, 23)]
    assert loads[-1].arriving_tokens_per_s == pytest.approx(1_600)
    assert loads[-1].queued_tokens == 2_000
    rates = [pool.look(turn, brought=0).arriving_tokens_per_s for turn in range(23, 60)]
    assert max(rates) <= 1_600  # what decode lets through then is no burst
    assert rates[-1] == 0


def test_only_who_asks_for_blocks_waits_between() -> None:
    stats = WorkerStats(num_waiting=7, waiting_by_kind={"receive": 4, "local": 3})
    reports = (Report("a", 0.0, stats), Report("b", 1e9, stats))
    assert num_asking(PoolView(2, reports), stale_after_s=5.0) == 8  # the silent one is like the other
    assert num_asking(PoolView(0), stale_after_s=5.0) == 0
