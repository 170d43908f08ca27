"""A generator that stands still must be seen to."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from loadgen.client.clock import LoopLag


def test_a_stall_counts_for_as_long_as_it_lasts() -> None:
    """A second every ten, in 60 s of 50 samples each: a tenth of the time, not six of 3,000 samples."""
    lag = LoopLag()
    for _ in range(6):
        for _ in range(450):
            lag.add(0.0)
        lag.add(1.0)
    late = [each for each in lag.samples_ms if each > 10]
    assert 0.09 < len(late) / len(lag.samples_ms) < 0.11
    assert np.percentile(lag.samples_ms, 99) > 800


async def test_a_loop_that_stands_still_is_noticed_for_as_long() -> None:
    lag = LoopLag()
    watching = asyncio.ensure_future(lag.watch())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 (the stall itself)
    await asyncio.sleep(lag.INTERVAL_S)
    watching.cancel()
    assert len([each for each in lag.samples_ms if each > 10]) >= 12


def test_what_is_shorter_than_the_interval_is_one_sample() -> None:
    lag = LoopLag()
    lag.add(0.015)
    assert lag.samples_ms == [15.0]
    lag.add(0.05)
    assert lag.samples_ms[1:] == pytest.approx([50, 30, 10])
