"""The simulator against measured time per token of Llama-3.1-70B FP8 on 4 x H100, prompts beside decoding."""

import pytest

from loadgen.sim.interference import MEASURED_TPOT_MS, compare, mape, run


@pytest.mark.parametrize("concurrency", [4, 16])
def test_few_clients(concurrency: int) -> None:
    assert abs(compare(concurrency).error) < 0.15


@pytest.mark.slow
def test_all_measured_points() -> None:
    comparisons = [compare(concurrency) for concurrency in MEASURED_TPOT_MS]
    assert all(abs(each.error) < 0.15 for each in comparisons), comparisons
    assert mape(comparisons) < 0.08


def test_64_clients() -> None:
    comparison = compare(64)
    assert comparison.measured_tpot_ms == pytest.approx(53.5, abs=0.1)
    assert abs(comparison.error) < 0.15


def test_interference_is_what_is_measured() -> None:
    """Without other clients' prompts a token takes a quarter of the time it takes among 64."""
    alone = run(1).tpot_ms.mean
    assert alone == pytest.approx(11.7, rel=0.05)
    assert compare(64).simulated_tpot_ms > 3.5 * alone
