"""Timing in process, and a fixed loop of plain Python to compare machines by."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")

LOOP = 20_000


def median_us(work: Callable[[Item], object], items: Iterable[Item]) -> float:
    """Median time of one call, each with another item."""
    gc.collect()
    times = []
    for item in items:
        began = time.perf_counter()
        work(item)
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times)


def seconds(work: Callable[[], object], collect: bool = True) -> float:
    if collect:
        gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def reference_loop_us() -> float:
    """Median time of a loop of LOOP dictionary look-ups, additions and multiplications. Never to be changed."""
    table = {number: number for number in range(256)}

    def loop(_: int) -> int:
        total = 0
        for number in range(LOOP):
            total += table[number & 255] * number
        return total

    return median_us(loop, range(15))
