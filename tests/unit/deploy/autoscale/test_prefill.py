"""How many prefill workers a load takes: queueing theory that can be checked against known values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.autoscale.prefill import backlog_when_started, late_share, needed
from deploy.autoscale.signals import PrefillLoad

LOAD = PrefillLoad(0.0, 4_000.0, 4.0, 1_000.0, 2_000.0)  # two workers' worth of prompts of half a second


def count(load: PrefillLoad, serving: int = 2, starting_s: tuple[float, ...] = (), **changes: float) -> int:
    limits = {"start_s": 60.0, "ttft_ms": 2_000.0, "attainment": 0.95} | changes
    return needed(load, serving, starting_s, limits["start_s"], limits["ttft_ms"], limits["attainment"]).count


def test_one_server_waits_as_the_textbook_says() -> None:
    """M/M/1: P(wait > t) = rho exp(-(1 - rho) t / s)."""
    assert late_share(1, 0.5, 1.0, 0.0) == pytest.approx(0.5)
    assert late_share(1, 0.5, 1.0, 2.0) == pytest.approx(0.5 * math.exp(-1.0))


def test_two_servers_wait_as_the_textbook_says() -> None:
    """M/M/2: C(2, a) = a^2 / (2 + a) is Erlang's delay probability."""
    assert late_share(2, 1.0, 1.0, 0.0) == pytest.approx(1 / 3)
    assert late_share(2, 2.0, 1.0, 5.0) == 1.0  # overloaded


def test_no_prompts_take_no_worker_and_an_unmeasured_speed_is_not_guessed() -> None:
    assert count(PrefillLoad(0.0, 0.0, 0.0, 0.0, 2_000.0)) == 0
    assert not needed(PrefillLoad(5.0, 10.0, 0.0, 0.0, 0.0), 1, (), 60.0, 2_000.0, 0.95).known


def test_a_tighter_limit_takes_more_workers() -> None:
    counts = [count(LOAD, ttft_ms=ttft_ms) for ttft_ms in (60_000.0, 2_000.0, 700.0)]
    assert counts == sorted(counts)
    assert counts[0] == 3  # two are busy all the time: the queue would never end
    assert counts[-1] > counts[0]


def test_a_limit_that_no_number_of_workers_meets_does_not_take_all_of_them() -> None:
    need = needed(LOAD, 2, (), 60.0, 100.0, 0.95)
    assert "more workers cannot help" in need.reason
    assert need.count < 10


def test_what_starts_already_is_in_the_sum() -> None:
    """A burst that three workers drain: asking again while they start asks for no more of them."""
    burst = replace(LOAD, arriving_tokens_per_s=8_000.0, queued_tokens=20_000.0)
    first = count(burst, serving=1)
    later = replace(burst, queued_tokens=20_000.0 + 30 * (8_000.0 - 2_000.0))
    assert count(later, serving=1, starting_s=(30.0,) * (first - 1)) <= first


def test_backlog_grows_until_workers_join() -> None:
    load = PrefillLoad(1_000.0, 4_000.0, 4.0, 1_000.0, 2_000.0)
    assert backlog_when_started(load, 1, (), 60.0) == 1_000 + 60 * 2_000
    assert backlog_when_started(load, 1, (50.0,), 60.0) == 1_000 + 10 * 2_000  # then inflow and outflow are equal
    assert backlog_when_started(load, 3, (), 60.0) == 0.0


@given(st.floats(1.0, 1e5), st.floats(1.0, 3.0), st.integers(1, 20))
def test_more_arrivals_never_take_fewer_workers(rate: float, factor: float, serving: int) -> None:
    load = replace(LOAD, arriving_tokens_per_s=rate)
    assert count(load.grown(factor), serving) >= count(load, serving)


@given(st.integers(1, 30), st.floats(0.0, 29.0), st.floats(0.0, 10.0))
def test_shares_are_shares(num_workers: int, offered: float, wait_s: float) -> None:
    share = late_share(num_workers, offered, 0.5, wait_s)
    assert 0.0 <= share <= 1.0
    assert share >= late_share(num_workers + 1, offered, 0.5, wait_s)
