"""What of a worker's own measurement is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.messages import Role
from router.placement import Learnt, PromptView, WorkerView, place
from router.placement.rates import SAMPLE, Rates, drawn
from router.placement.workers import Workers

POSITIVE = st.floats(1e-3, 1e3)


@given(own=POSITIVE, mean=POSITIVE, error=st.floats(0.0, 0.5))
def test_drawn_towards_the_mean_and_never_beyond_it(own: float, mean: float, error: float) -> None:
    found = drawn(own, mean, 1 - error)
    assert min(own, mean) * (1 - 1e-12) <= found <= max(own, mean) * (1 + 1e-12)
    assert drawn(own, mean, 1.0) == pytest.approx(own)


@given(one=POSITIVE, other=POSITIVE, mean=POSITIVE, error=st.floats(0.0, 0.5))
def test_who_is_slower_does_not_become_quicker(one: float, other: float, mean: float, error: float) -> None:
    slow, quick = max(one, other), min(one, other)
    assert drawn(slow, mean, 1 - error) >= drawn(quick, mean, 1 - error)


def worker(name: str, tokens_per_s: float, role: Role = Role.DECODE, **more: float) -> WorkerView:
    return WorkerView(name, role, 0, 0, 0, 1_000, tokens_per_s, **more)  # type: ignore[arg-type]


def shares(fleet: list[WorkerView], error: float) -> dict[str, int]:
    """Of a hundred cold prompts on an idle fleet, who would get how many."""
    prompt, counts = PromptView(500, 32, 1_000), dict.fromkeys((each.worker_id for each in fleet), 0)
    for turn in range(100):
        counts[place(prompt, fleet, "auto", turn, learnt=Learnt(10.0, error)).decode_id] += 1
    return counts


def test_differences_that_doubt_explains_do_not_decide() -> None:
    """Rates of equal workers that measured other prompts last: the quickest is not given everything."""
    fleet = [worker("a", 10_000), worker("b", 8_500), worker("c", 7_500), worker("d", 9_000)]
    assert min(shares(fleet, 0.4).values()) > 10
    assert max(shares(fleet, 0.02).values()) > 90  # where predictions are right, so are the rates


def test_a_worker_that_is_really_slow_is_avoided_however_large_the_doubt() -> None:
    fleet = [worker("a", 10_000), worker("b", 10_000), worker("slow", 1_000)]
    assert shares(fleet, 0.5)["slow"] == 0


def means(prefills: list[WorkerView], decodes: list[WorkerView]) -> Rates:
    return Rates.mean_of(Workers.of(prefills, {}), Workers.of(decodes, {}))


def test_means_of_a_large_fleet_come_from_an_even_sample_of_each_role() -> None:
    prefills = [worker(f"p{i}", 10_000.0, Role.PREFILL) for i in range(5)]
    decodes = [worker(f"d{i}", 5_000.0, decode_base_ms=8.0, decode_ms_per_sequence=0.5) for i in range(20 * SAMPLE)]
    rates = means(prefills, decodes)
    assert rates.apart
    assert rates.prefill_own_ms_per_token == pytest.approx(0.1, rel=0.03)
    assert rates.decode_own_ms_per_token == pytest.approx(0.2, rel=0.03)
    assert rates.decode_base_ms == pytest.approx(8.0, rel=0.03)
    assert rates.prefill_ms_per_token == rates.prefill_own_ms_per_token
    assert not means([], decodes).apart


def test_the_only_one_that_has_measured_is_found_in_a_large_fleet() -> None:
    fleet = [worker(f"d{i}", 0.0) for i in range(500)]
    fleet[333] = worker("d333", 5_000.0)
    assert means([], fleet).prefill_ms_per_token == pytest.approx(0.2, rel=0.03)
