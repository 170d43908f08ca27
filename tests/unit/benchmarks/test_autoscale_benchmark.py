"""The real policy on the real simulator, at a small scale: it grows, shrinks, does not oscillate, and saves workers."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.autoscale import as_dear
from benchmarks.sim.elastic import num_oscillations, run_elastic, run_fixed, run_scaled, sized_for
from benchmarks.sim.foresight import Foresight, Sizes
from benchmarks.sim.loads import Load
from deploy.autoscale import AutoscaleSettings, Bounds
from deploy.reconcile import Kind
from diptych.engine.limits import Limits
from diptych.engine.sim.timing import FittedTiming
from diptych.messages import Role
from loadgen.arrivals import Piece
from loadgen.sim.config import Fleet, SimConfig, with_queue
from loadgen.sim.elastic import Change
from loadgen.sim.policies import min_ttft

SETTINGS = AutoscaleSettings(
    mode="on", ttft_ms=8_000.0, tpot_ms=150.0, prefill=Bounds(max=8), decode=Bounds(max=8), start_s=30.0
)
START_S, PROMPT_TOKENS, OUTPUT_TOKENS = 30.0, 2_000, 60
CONFIG = SimConfig(
    Fleet(1, 1),
    FittedTiming(50.0, 1.0, 0.0, 50.0, 10.0, 2e-4),  # a prompt computes two seconds; ten sequences are a full batch
    min_ttft("always"),
    Limits(8_192, 64, 256, 1 << 16),
    400,
    256_000,
    wire_bytes_per_s=1e9,
    reserve_timeout_ms=3_600_000.0,
)


def load(*rows: tuple[float, float, float]) -> Load:
    return Load("test", tuple(Piece(*row) for row in rows), PROMPT_TOKENS, OUTPUT_TOKENS)


STEP = load((300, 0.3, 0.3), (600, 1.5, 1.5), (600, 0.3, 0.3))
RAMP = load((600, 0.2, 1.6), (600, 1.6, 0.2), (300, 0.2, 0.2))
BURSTS = load(*[(240, 0.3, 0.3), (60, 1.5, 1.5)] * 4)


@pytest.mark.parametrize(("shape", "most"), [(STEP, 1), (RAMP, 3), (BURSTS, 8)], ids=["step", "ramp", "bursts"])
def test_reversals_are_bounded_by_the_load_and_time(shape: Load, most: int) -> None:
    """A step up and down needs one; a burst may take two, if it comes after the workers of the last one have left."""
    outcome, elastic, _ = run_elastic(CONFIG, shape, SETTINGS, start_s=START_S, seed=0, tail_s=600.0)
    assert outcome.reversals <= most
    assert outcome.most > (1, 1)
    assert elastic.changes[-1].after == 1  # nothing runs any more: each pool is at its minimum
    for role in Role:
        changes = [change for change in elastic.changes if change.role is role]
        for before, after in pairwise(changes):  # nothing that has just grown shrinks within the window
            if after.after < after.before and before.after > before.before:
                assert after.at_s - before.at_s >= SETTINGS.down_after_s


@pytest.mark.slow
def test_it_serves_far_better_than_a_fleet_of_the_mean_and_costs_less_than_one_of_the_peak() -> None:
    day = load((900, 0.2, 0.2), (600, 0.2, 1.6), (300, 1.6, 1.6), (600, 1.6, 0.2), (900, 0.2, 0.2))
    outcome, _, _ = run_elastic(CONFIG, day, SETTINGS, start_s=START_S, seed=1)
    fixed = {
        rate: run_fixed(CONFIG, day, SETTINGS, sized_for(CONFIG, day, SETTINGS, rate), 1)
        for rate in (day.mean, day.peak)
    }
    assert outcome.worker_hours < fixed[day.peak].worker_hours
    assert outcome.attainment > 0.9
    assert outcome.attainment > fixed[day.mean].attainment + 0.1


def test_the_same_seed_gives_the_same_decisions() -> None:
    short = load((120, 0.3, 0.3), (180, 1.5, 1.5))
    first, again = (run_elastic(CONFIG, short, SETTINGS, start_s=START_S, seed=3) for _ in range(2))
    assert first[0].trace_hash == again[0].trace_hash
    assert first[1].changes == again[1].changes


def test_a_fleet_that_falls_silent_is_held() -> None:
    """Its workers go on serving, only nobody hears of them: what it has it keeps, though the load goes."""
    silent_from_s = 500.0
    _, elastic, scaler = run_elastic(
        CONFIG,
        load((600, 1.2, 1.2)),
        SETTINGS,
        start_s=START_S,
        seed=0,
        silent=lambda now_s, _worker_id: now_s > silent_from_s,
        tail_s=900.0,
    )
    assert not [change for change in elastic.changes if change.at_s > silent_from_s]
    assert all("silent" in verdict.reason for verdict in scaler.decisions[-1][1].verdicts.values())


def test_the_rate_is_known_by_time() -> None:
    shape = load((100, 1, 1), (100, 1, 3), (100, 3, 3), (100, 3, 3))
    assert shape.highest(0.0, 50.0) == 1.0
    assert shape.highest(120.0, 150.0) == pytest.approx(2.0)
    assert shape.highest(0.0, 1e9) == 3.0
    assert shape.highest(400.0, 500.0) == 0.0
    assert shape.is_level(10.0, 99.0)
    assert shape.is_level(210.0, 390.0)  # over a seam between two pieces
    assert not shape.is_level(50.0, 150.0)
    assert not shape.is_level(-1.0, 50.0)  # the load begins
    assert not shape.is_level(350.0, 401.0)  # it ends


def test_an_oscillation_is_a_turn_that_no_change_of_the_load_explains() -> None:
    level = load((3_000, 1, 1))
    changes = [
        Change(1_000.0, Role.PREFILL, 2, 3),
        Change(1_200.0, Role.PREFILL, 3, 2),
        Change(1_200.0, Role.DECODE, 2, 3),
    ]
    assert num_oscillations(changes, level, 300.0) == 1
    assert num_oscillations(changes, level, 1_000.1) == 0  # it may still have been the load's beginning
    assert num_oscillations([changes[0], Change(1_200.0, Role.PREFILL, 3, 4)], level, 300.0) == 0  # no turn
    assert num_oscillations(changes, load((900, 1, 1), (2_100, 2, 2)), 300.0) == 0
    assert num_oscillations(changes, load((1_100, 1, 1), (1_900, 0.5, 0.5)), 300.0) == 0


def test_who_knows_the_load_ahead_has_the_workers_when_it_comes() -> None:
    step = load((200, 0.3, 0.3), (200, 1.5, 1.5))
    sizes = Sizes(CONFIG, step, SETTINGS)
    scaler = Foresight(sizes, START_S)
    _, elastic = run_scaled(CONFIG, step, SETTINGS, scaler, sizes.fleet(0.3), start_s=START_S, seed=0)
    assert {change.role for change in elastic.changes} == set(Role)
    for change in elastic.changes[:2]:
        assert 200.0 - START_S - 3 * SETTINGS.interval_s <= change.at_s <= 200.0 - START_S


def test_the_fleet_that_is_as_dear_costs_as_much() -> None:
    shape = load((300, 1.0, 1.0))
    auto, _, _ = run_elastic(CONFIG, shape, SETTINGS, start_s=START_S, seed=0)
    fixed = run_fixed(CONFIG, shape, SETTINGS, as_dear(auto), 0)
    assert abs(fixed.prefill_hours - auto.prefill_hours) <= 0.6 * fixed.lasted_hours
    assert abs(fixed.decode_hours - auto.decode_hours) <= 0.6 * fixed.lasted_hours


def test_what_waits_in_the_router_is_seen() -> None:
    queued = with_queue(CONFIG, "wait", "min_ttft_remote", 0.0)
    _, _, scaler = run_elastic(queued, load((60, 3, 3)), SETTINGS, start_s=1e6, seed=0)
    assert max(decision.verdicts[Kind.PREFILL].needed for _, decision in scaler.decisions) == SETTINGS.prefill.max
