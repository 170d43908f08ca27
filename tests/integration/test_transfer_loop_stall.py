"""While 128 MiB move over real NIXL between two workers, the event loops of both go on running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from benchmarks.transfer.loop_probe import LoopProbe
from benchmarks.transfer.pair import Pair, open_pair
from benchmarks.transfer.receiving import BARE, CHECKED
from kv_transfer.nixl_agent import ucx_environment

LONGEST_STALL_MS = 5.0
NUM_BLOCKS, BLOCK_BYTES = 128, 1 << 20
ATTEMPTS = 5  # a stall of our making comes back every time, one that a neighbour on the machine made does not


@pytest.fixture
async def pair(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    for name, value in ucx_environment(interfaces="lo").items():  # so that it is restored
        monkeypatch.setenv(name, value)
    async with open_pair(NUM_BLOCKS, BLOCK_BYTES) as pair:
        yield pair


@pytest.mark.parametrize("kind", [CHECKED, BARE])
async def test_loops_run_on_while_a_transfer_moves(pair: Pair, kind: str) -> None:
    assert pair.num_bytes == 128 << 20
    worst: list[float] = []
    for _ in range(ATTEMPTS):
        push = await pair.push(kind)
        worst.append(max(push.pushing_stall_ms, push.receiving_stall_ms))
        if worst[-1] < LONGEST_STALL_MS:
            return
    pytest.fail(f"stalls of {worst} ms, each in another transfer")


async def test_a_write_on_the_loop_would_be_seen(pair: Pair) -> None:
    """Over shared memory NIXL copies before it returns: this is why it has a thread."""
    seen: list[tuple[float, float]] = []
    for _ in range(ATTEMPTS):  # time for which a neighbour had the core is in the one and not in the other
        async with LoopProbe() as probe:
            await asyncio.sleep(0)
            began = time.monotonic()
            pair.raw_write_s()
            blocked_s = time.monotonic() - began
            await asyncio.sleep(0.01)
        seen.append((probe.longest_stall_s, blocked_s))
        if probe.longest_stall_s > max(blocked_s / 2, LONGEST_STALL_MS / 1e3):
            return
    pytest.fail(f"stalls of a loop, and how long it was blocked, in seconds: {seen}")


async def test_the_probe_sees_a_loop_that_sleeps_and_one_that_does_not() -> None:
    async with LoopProbe() as quiet:
        await asyncio.sleep(0.05)
    async with LoopProbe() as stalled:
        time.sleep(0.05)  # noqa: ASYNC251 (what is measured)
    assert quiet.num_ticks > 1
    assert quiet.longest_stall_s < 0.02 < 0.04 < stalled.longest_stall_s
