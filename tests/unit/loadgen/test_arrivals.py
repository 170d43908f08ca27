"""Arrivals: fixed beforehand, of the rate and shape they say, for any rate over time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import (
    ClosedLoop,
    OpenLoop,
    Piece,
    TraceTimes,
    describe,
    open_loop_times_ms,
    parse_rate,
    trace_times_ms,
)

pieces = st.builds(
    lambda duration, ends: Piece(duration, *ends),
    st.floats(0.5, 20),
    st.tuples(st.floats(0, 50), st.floats(0, 50)).filter(lambda ends: sum(ends) > 0.1),
)
loops = st.builds(
    OpenLoop,
    st.lists(pieces, min_size=1, max_size=4).map(tuple),
    st.sampled_from(["poisson", "gamma", "constant"]),
    st.floats(0.1, 5),
)


@given(loops, st.integers(0, 2**32))
def test_times_are_fixed_ascending_and_inside_the_run(loop: OpenLoop, seed: int) -> None:
    times = open_loop_times_ms(loop, seed)
    assert (times == open_loop_times_ms(loop, seed)).all()
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times <= 1e3 * sum(piece.length_s for piece in loop.pieces) * (1 + 1e-9))).all()


@given(loops, st.integers(0, 2**32), st.integers(1, 50))
def test_a_shorter_run_is_the_beginning_of_a_longer_one(loop: OpenLoop, seed: int, number: int) -> None:
    everything = open_loop_times_ms(loop, seed)
    some = open_loop_times_ms(loop, seed, number)
    assert len(some) == min(number, len(everything))
    assert (some == everything[: len(some)]).all()


@given(pieces, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_time_is_the_inverse_of_the_expected_count(piece: Piece, shares: list[float]) -> None:
    counts = np.asarray(shares) * piece.expected
    at = piece.when(counts)
    slope = (piece.end - piece.start) / piece.length_s
    assert piece.start * at + slope * at**2 / 2 == pytest.approx(counts, rel=1e-6, abs=1e-6 * max(1.0, piece.expected))


@pytest.mark.parametrize(
    ("loop", "variation"),
    [
        (OpenLoop((Piece(200, 50, 50),)), 1.0),
        (OpenLoop((Piece(200, 50, 50),), "gamma", 0.25), 4.0),
        (OpenLoop((Piece(200, 50, 50),), "gamma", 4.0), 0.25),
        (OpenLoop((Piece(200, 50, 50),), "constant"), 0.0),
    ],
)
def test_gaps_vary_as_they_should(loop: OpenLoop, variation: float) -> None:
    """The squared coefficient of variation of gamma gaps is 1 / burstiness. 10,000 gaps: 15 % is four sigmas."""
    times = open_loop_times_ms(loop, seed=7)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.1)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(variation, rel=0.15, abs=1e-9)


def test_a_ramp_has_its_rate_everywhere() -> None:
    times = open_loop_times_ms(OpenLoop(parse_rate("0..100", 100.0), "constant"), seed=0) / 1e3
    counts, _ = np.histogram(times, bins=10, range=(0, 100))
    assert counts.tolist() == pytest.approx([50 + 100 * number for number in range(10)], abs=2)


def test_steps_have_their_rates() -> None:
    times = open_loop_times_ms(OpenLoop(parse_rate("5|10|20", 30.0), "constant"), seed=0) / 1e3
    counts, _ = np.histogram(times, bins=3, range=(0, 30))
    assert counts.tolist() == [50, 100, 200]


def test_constant_arrivals_are_evenly_spaced_from_zero() -> None:
    times = open_loop_times_ms(OpenLoop(parse_rate("4", None), "constant"), seed=3, max_requests=5)
    assert times.tolist() == [0, 250, 500, 750, 1000]


def test_another_seed_gives_other_times() -> None:
    loop = OpenLoop(parse_rate("4", 30.0))
    assert open_loop_times_ms(loop, 1).tolist() != open_loop_times_ms(loop, 2).tolist()


@given(st.lists(st.floats(0, 1e6), max_size=30), st.floats(0.1, 10), st.floats(0, 5_000), st.integers(0, 2**32))
def test_trace_times(recorded: list[float], speedup: float, jitter_ms: float, seed: int) -> None:
    times, order = trace_times_ms(recorded, TraceTimes(speedup, jitter_ms), seed)
    assert sorted(order.tolist()) == list(range(len(recorded)))
    assert (np.diff(times) >= 0).all()
    for at, which in zip(times, order, strict=True):
        late = at * speedup - recorded[which]
        assert -1e-6 * max(1, recorded[which]) <= late <= jitter_ms + 1e-6 * max(1, recorded[which])


@pytest.mark.parametrize("text", ["", "fast", "1..2..3", "1..", "-1", "0"])
def test_a_rate_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_rate(text, 10.0)


@pytest.mark.parametrize("text", ["1..5", "1|5"])
def test_what_changes_needs_an_end(text: str) -> None:
    with pytest.raises(ValueError, match="how long"):
        parse_rate(text, None)


def test_something_must_end() -> None:
    with pytest.raises(ValueError, match="how many requests, or how long"):
        open_loop_times_ms(OpenLoop(parse_rate("5", None)), seed=0)
    assert math.isinf(parse_rate("5", None)[0].length_s)


def test_a_word_for_each() -> None:
    assert describe(ClosedLoop(8)) == "8 at a time"
    assert describe(OpenLoop(parse_rate("1..20", 10.0), "gamma", 0.5)) == "1–20/s gamma"
    assert describe(TraceTimes(2.0)) == "trace times × 2"
