import pytest

from loadgen.sim.intervals import interval


def test_a_textbook_interval() -> None:
    """Five values of mean 10 and standard deviation 1.5811: 2.776 x 1.5811 / sqrt(5) = 1.963 to each side."""
    found = interval([8.0, 9.0, 10.0, 11.0, 12.0])
    assert (found.mean, found.num_samples) == (10.0, 5)
    assert found.high - found.mean == pytest.approx(1.963, abs=1e-3)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_one_sample_says_nothing_about_spread() -> None:
    assert interval([3.0]).low == interval([3.0]).high == 3.0
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_many_samples_come_near_the_normal_quantile() -> None:
    found = interval([0.0, 1.0] * 50)
    assert (found.high - found.mean) / (0.50252 / 10) == pytest.approx(1.96, abs=1e-3)
