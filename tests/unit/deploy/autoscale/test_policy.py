"""The whole policy on pools in closed form: no oscillation whatever the load, no shrinking on silence, zero is data."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from fluid_pools import FluidPools
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.autoscale import Autoscaler, AutoscaleSettings, Bounds, PoolView, Report
from deploy.autoscale.signals import Verdict
from deploy.reconcile import Kind
from diptych.messages import WorkerStats

WIDE = Bounds(min=1, max=50)
SETTINGS = AutoscaleSettings(mode="on", ttft_ms=3_000.0, tpot_ms=60.0, prefill=WIDE, decode=WIDE)
POOLS = (Kind.PREFILL, Kind.DECODE)


def pools(rate: Any, start_s: float = 60.0, **changes: Any) -> FluidPools:
    return FluidPools(SETTINGS, start_s, rate if callable(rate) else lambda _now_s: rate, **changes)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.0, 40.0), st.floats(5.0, 300.0), st.floats(500.0, 8_000.0), st.floats(20.0, 400.0))
def test_a_steady_load_makes_each_pool_grow_and_at_most_once_shrink(
    rate: float, start_s: float, tokens_per_s: float, output_tokens: float
) -> None:
    """Whatever the load, the start-up time and the speed: growing for a backlog, then giving back what it took."""
    made = pools(rate, start_s, tokens_per_s=tokens_per_s, output_tokens=output_tokens)
    made.run(2_700.0)
    assert max(made.reversals(kind) for kind in POOLS) <= 1
    assert len({tuple(counts.values()) for now_s, counts in made.history if now_s > 2_400.0}) == 1  # it has settled


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(60, 1_200)), min_size=2, max_size=6), st.floats(5.0, 200.0))
def test_no_more_reversals_than_the_load_makes(steps: list[tuple[float, int]], start_s: float) -> None:
    ends = [sum(lasted for _, lasted in steps[: index + 1]) for index in range(len(steps))]

    def rate(now_s: float) -> float:
        return next((rate for (rate, _), end_s in zip(steps, ends, strict=True) if now_s < end_s), steps[-1][0])

    made = pools(rate, start_s)
    made.run(ends[-1] + 1_200.0)
    assert max(made.reversals(kind) for kind in POOLS) <= 2 * len(steps) - 1


def test_a_step_is_answered_at_once_and_given_back_late() -> None:
    made = pools(lambda now_s: 6.0 if 300 <= now_s < 900 else 1.0)
    made.run(1_800.0)
    wanted = {now_s: counts[Kind.PREFILL] for now_s, counts in made.history}
    assert wanted[320.0] > wanted[300.0]
    assert wanted[900.0] == wanted[900.0 + SETTINGS.down_after_s - 10] >= 4
    assert wanted[1_800.0] <= 2


def test_it_does_not_overshoot_while_workers_load() -> None:
    """With a start of five minutes a backlog grows all the while; what is asked for at first stays asked for."""
    made = pools(8.0, start_s=300.0)
    made.autoscaler.start_s[Kind.PREFILL] = 300.0
    made.run(320.0)
    counts = [counts[Kind.PREFILL] for _, counts in made.history]
    assert counts[-1] <= 1.25 * counts[12]  # a minute after the beginning


def test_zero_traffic_is_data() -> None:
    made = pools(lambda now_s: 8.0 if now_s < 600 else 0.0)
    made.run(600.0)
    assert made.counts[Kind.PREFILL] > 3
    made.run(900.0)
    assert made.counts == {Kind.PREFILL: 1, Kind.DECODE: 1}


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_silence_is_not_zero_traffic(share: float) -> None:
    """Half of the workers, or all of them, say nothing any more: nothing shrinks, however long."""

    def silent(now_s: float, worker_id: str) -> bool:
        return now_s > 600 and (share == 1.0 or int(worker_id.split("-")[1]) % 2 == 0)

    made = pools(lambda now_s: 8.0 if now_s < 600 else 0.0, silent=silent)
    made.run(600.0)
    before = dict(made.counts)
    made.run(3_000.0)
    assert made.counts[Kind.PREFILL] == before[Kind.PREFILL]
    assert "silent" in made.reasons[-1][Kind.PREFILL]


def test_one_silent_worker_of_many_stops_shrinking_but_not_growing() -> None:
    made = pools(lambda now_s: 4.0 if now_s < 600 else 16.0, silent=lambda now_s, id: now_s > 500 and id.endswith("-0"))
    made.run(600.0)
    before = made.counts[Kind.PREFILL]
    assert before >= 3
    made.run(400.0)
    assert made.counts[Kind.PREFILL] > 2 * before
    made.prompts_per_s = lambda _now_s: 0.0
    grown = made.counts[Kind.PREFILL]
    made.run(1_200.0)
    assert made.counts[Kind.PREFILL] >= grown


def test_after_a_silence_counters_do_not_count_as_a_burst() -> None:
    made = pools(4.0, silent=lambda now_s, _id: 600 < now_s <= 1_200)
    made.run(600.0)
    before = dict(made.counts)
    made.run(700.0)
    assert made.counts == before


def test_steps_up_are_bounded() -> None:
    made = pools(40.0)
    made.run(600.0)
    counts = [counts[Kind.PREFILL] for _, counts in made.history]
    assert all(b - a <= max(SETTINGS.max_step_up, a) for a, b in pairwise(counts))


def one_look(*reports: Report, wanted: int, bounds: Bounds | None = None, looks: int = 4) -> Verdict:
    autoscaler = Autoscaler(SETTINGS)
    for look in range(looks):
        decision = autoscaler.decide(
            5.0 * look, {Kind.PREFILL: PoolView(wanted, reports)}, {Kind.PREFILL: bounds} if bounds else None
        )
    return decision.verdicts[Kind.PREFILL]


def test_bounds_hold_at_once_and_a_pinned_pool_stays() -> None:
    idle = Report("p", 0.0, WorkerStats())
    assert one_look(idle, wanted=9, bounds=Bounds(min=2, max=5), looks=1).wanted == 5
    assert one_look(idle, wanted=1, bounds=Bounds(min=2, max=5), looks=1).wanted == 2
    assert one_look(idle, wanted=3, bounds=Bounds(min=3, max=3), looks=200).wanted == 3


def test_a_pool_that_was_never_heard_of_is_held() -> None:
    assert one_look(wanted=3, looks=200).wanted == 3
    assert one_look(Report("p", 0.0, None), wanted=3, looks=200).wanted == 3
    assert one_look(Report("p", 60.0, WorkerStats()), wanted=3, looks=200).wanted == 3


def test_workers_that_cannot_be_started_are_given_up_when_the_load_goes() -> None:
    """Nothing is waited for: what was asked for in vain is not asked for any more once there is nothing to do."""
    made = pools(lambda now_s: 8.0 if now_s < 300 else 0.0, start_s=1e9)
    made.run(300.0)
    assert made.counts[Kind.PREFILL] > 1
    made.run(1_800.0)  # the one that is there works off what has come
    assert made.counts[Kind.PREFILL] == 1


def test_what_came_to_prefill_workers_is_forgotten_with_them() -> None:
    """Decode computes prompts itself from then on, and nobody knows how many come."""

    def decide(autoscaler: Autoscaler, look: int, *, prefill: bool) -> Verdict:
        done = WorkerStats(transfers_total=1_000 * look, prompt_tokens_computed_total=100_000 * look)
        busy = WorkerStats(num_running=10, num_waiting=40, blocks_total=1_000, blocks_free=900, decode_step_ms=20.0)
        reports = {Kind.DECODE: busy} | ({Kind.PREFILL: done} if prefill else {})
        views = {kind: PoolView(1, (Report(str(kind), 0.0, stats),)) for kind, stats in reports.items()}
        return autoscaler.decide(5.0 * look, views).verdicts[Kind.DECODE]

    once, never = Autoscaler(SETTINGS), Autoscaler(SETTINGS)
    before = [(decide(once, look, prefill=True), decide(never, look, prefill=False)) for look in range(6)]
    assert before[-1][0].needed < before[-1][1].needed
    assert decide(once, 6, prefill=False).needed == decide(never, 6, prefill=False).needed


def test_starts_are_learnt() -> None:
    autoscaler = Autoscaler(SETTINGS)
    autoscaler.started(Kind.DECODE, 20.0)
    assert autoscaler.start_s == {Kind.PREFILL: SETTINGS.start_s, Kind.DECODE: 20.0}
    autoscaler.started(Kind.DECODE, 30.0)
    assert 20.0 < autoscaler.start_s[Kind.DECODE] < 30.0
    assert Autoscaler(SETTINGS, autoscaler.start_s).start_s == autoscaler.start_s


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "maybe"},
        {"ttft_ms": 0.0},
        {"kv_target": 1.5},
        {"attainment": 1.0},
        {"prefill": {"min": 3, "max": 2}},
        {"decode": {"min": 0}},
        {"down_after_s": 1.0},
        {"down_after_most_s": 10.0},
        {"max_step_up": 0},
        {"surprise": 1},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, AutoscaleSettings)
