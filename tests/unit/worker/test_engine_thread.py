import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from fake_runner import FakeRunner

from diptych.engine.engine import Engine
from diptych.engine.interface import EngineRequest, Kind, StepOutcome
from diptych.engine.limits import Limits
from diptych.errors import PromptTooLong
from diptych.messages import SamplingParams
from diptych.worker.engine_thread import EngineThread


def request(request_id: str, max_tokens: int = 4) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=1, temperature=0.0)
    return EngineRequest(request_id, Kind.LOCAL, (1, 2, 3), sampling, bytes(32))


class Harness:
    """An engine thread over the fake runner, with what it reported."""

    def __init__(self) -> None:
        self.runner = FakeRunner(num_blocks=64, block_size=4)
        self.thread = EngineThread(Engine(self.runner, Limits(64, 8, 4, 128)))
        self.outcomes: asyncio.Queue[StepOutcome] = asyncio.Queue()
        self.crashed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.thread.start(self.outcomes.put_nowait, self.crashed.set_result)

    async def tokens(self, count: int) -> list[int]:
        got: list[int] = []
        async with asyncio.timeout(10):
            while len(got) < count:
                got += [token for one in (await self.outcomes.get()).updates for token in one.token_ids]
        return got


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = Harness()
    yield harness
    harness.thread.stop()


async def test_outcomes_of_every_step_arrive_on_the_loop(harness: Harness) -> None:
    await harness.thread.call(lambda engine: engine.add(request("a")))
    assert len(await harness.tokens(4)) == 4


async def test_a_command_returns_or_raises_on_the_loop(harness: Harness) -> None:
    assert await harness.thread.call(lambda engine: engine.abort("unknown")) is False
    with pytest.raises(PromptTooLong):
        await harness.thread.call(lambda engine: engine.add(request("long", max_tokens=1_000)))


async def test_stats_are_fresh_after_a_command_without_a_step(harness: Harness) -> None:
    prefill = EngineRequest("held", Kind.PREFILL, (1, 2, 3, 4, 5), request("x").sampling, bytes(32))
    await harness.thread.call(lambda engine: engine.add(prefill))
    await harness.tokens(1)
    harness.thread.post(lambda engine: engine.release("held"))
    harness.thread.stop()  # after all commands
    assert harness.thread.stats.blocks_used == 0
    assert harness.thread.stats.blocks_cached == 1


async def test_a_crash_of_the_engine_is_told(harness: Harness) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("bus error")

    harness.runner.execute = broken  # type: ignore[assignment, method-assign]
    harness.thread.post(lambda engine: engine.add(request("a")))
    async with asyncio.timeout(10):
        assert "bus error" in str(await harness.crashed)


async def test_a_deadline_wakes_a_thread_that_waits_for_nothing_else(harness: Harness) -> None:
    stuck = EngineRequest("late", Kind.RECEIVE, (1, 2, 3), request("x").sampling, bytes(32))
    deadline = harness.thread.now() + 0.02
    await harness.thread.call(lambda engine: engine.add(replace(stuck, deadline=deadline)))
    async with asyncio.timeout(10):
        assert len((await harness.outcomes.get()).reservations) == 1
        (update,) = (await harness.outcomes.get()).updates
    assert update.error is not None
    assert update.error.code == "deadline_exceeded"
    assert harness.thread.now() >= deadline
