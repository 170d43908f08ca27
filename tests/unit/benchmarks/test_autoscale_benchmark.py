"""The real policy on the real simulator, at a small scale: it grows, shrinks, does not oscillate, and saves workers."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.sim.elastic import Load, run_elastic, run_fixed, sized_for
from deploy.autoscale import AutoscaleSettings, Bounds
from diptych.engine.limits import Limits
from diptych.engine.sim.timing import FittedTiming
from diptych.messages import Role
from loadgen.arrivals import Piece
from loadgen.sim.config import Fleet, SimConfig
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
