"""The queue as coroutines see it, on a real event loop: who is woken, by what, and that every way out gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from admission_world import AdmissionWorld
from prometheus_client import CollectorRegistry

from diptych.errors import DeadlineExceeded, NoCapacity
from diptych.messages import SamplingParams
from router.admission.door import AdmissionDoor
from router.admission.metrics import AdmissionMetrics
from router.requests import TokenRequest


class Lobby:
    """A door on a fleet of one prefill worker with room for one prompt of 100 tokens at a time."""

    def __init__(self, **limits: Any) -> None:
        self.world = AdmissionWorld(**limits)
        self.registry = CollectorRegistry()
        metrics = AdmissionMetrics(self.registry, "tiny")
        self.door = AdmissionDoor(self.world.core, self.world.limits, metrics, lambda hashes: {"p0": 16 * len(hashes)})
        self.went: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}

    def start(self, name: str, *, hashes: int = 0, deadline_s: float = 1e6, **request: Any) -> asyncio.Task[None]:
        """A request that, when it is let through, is placed and stays until it is ended."""
        self.ends[name] = asyncio.Event()
        deadline = asyncio.get_running_loop().time() + deadline_s
        fields = {"prompt": [1] * 100, "sampling": SamplingParams(max_tokens=1, seed=0), **request}

        async def live() -> None:
            asked = TokenRequest(name, **fields)
            async with self.door.admitted(asked, [b""] * hashes, deadline) as turn:
                self.went.append(name)
                self.world.tokens["p0"] += 100
                turn.placed("d0")
                try:
                    await self.ends[name].wait()
                finally:
                    self.world.tokens["p0"] -= 100

        return asyncio.create_task(live(), name=name)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "tiny", **labels})


async def settled() -> None:
    """Everything that can run without time passing has run."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def lobby() -> AsyncIterator[Lobby]:
    lobby = Lobby(max_queued=3)
    yield lobby
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.get_name() in lobby.ends:
            task.cancel()
    await settled()
    lobby.world.core.check()
    assert (lobby.world.core.num_queued, lobby.world.core.num_in_flight, lobby.world.tokens["p0"]) == (0, 0, 0)
    assert not lobby.door._waiting
    assert lobby.door._timer is None


async def test_they_go_one_after_the_other_in_their_order(lobby: Lobby) -> None:
    tasks = [lobby.start(name) for name in "abc"]
    await settled()
    assert lobby.went == ["a"]
    urgent = lobby.start("urgent", priority=3)
    await settled()
    for name, went in zip(("a", "urgent", "b", "c"), ("aU", "aUb", "aUbc", "aUbc"), strict=True):
        lobby.ends[name].set()
        await settled()
        assert [each[0] for each in lobby.went] == [letter.lower() for letter in went]
    await asyncio.gather(*tasks, urgent)
    assert lobby.sample("diptych_admission_wait_seconds_count") == 4


async def test_a_report_or_another_worker_lets_the_next_one_through(lobby: Lobby) -> None:
    lobby.world.tokens["p0"] += 100  # another router's
    lobby.start("a")
    lobby.start("b")
    await settled()
    assert lobby.went == []
    lobby.world.tokens["p0"] -= 100
    await settled()
    assert lobby.went == []  # nobody has said so
    lobby.door.wake()
    await settled()
    assert lobby.went == ["a"]
    lobby.world.prefills.append("p1")
    lobby.door.wake()
    await settled()
    assert lobby.went == ["a", "b"]


async def test_a_first_token_makes_room(lobby: Lobby) -> None:
    deadline = asyncio.get_running_loop().time() + 100
    request = TokenRequest("a", [1] * 100, SamplingParams(max_tokens=1, seed=0))
    async with lobby.door.admitted(request, [], deadline) as turn:
        lobby.world.tokens["p0"] += 100
        turn.placed("d0")
        lobby.start("b")
        await settled()
        lobby.world.tokens["p0"] -= 100
        turn.prefilled()
        turn.prefilled()
        await settled()
        assert lobby.went == ["b"]


@asynccontextmanager
async def _busy(lobby: Lobby) -> AsyncIterator[None]:
    task = lobby.start("first")
    await settled()
    yield
    lobby.ends["first"].set()
    await task


async def test_refusals_say_why_and_when_to_come_again(lobby: Lobby) -> None:
    async with _busy(lobby):
        low = [lobby.start(name, priority=-1) for name in "abc"]
        await settled()
        with pytest.raises(NoCapacity, match=r"3 requests wait .*max_queued.* retry in [\d.]+ s") as full:
            await lobby.start("d", priority=-1)
        assert full.value.retry_after_s
        assert full.value.retry_after_s > 0.25  # three prompts of 100 ms; more, the longer nothing has moved
        with pytest.raises(NoCapacity, match=r"limit is 50 ms .X-Diptych-TTFT-Limit-Ms") as late:
            await lobby.start("e", ttft_limit_ms=50)
        assert late.value.retry_after_s
        with pytest.raises(NoCapacity, match="deadline"):
            await lobby.start("f", priority=-2, deadline_s=0.25)
        lobby.start("g")
        with pytest.raises(NoCapacity, match="higher priority"):
            await low[-1]
        counts = {reason: lobby.sample("diptych_admission_refusals_total", reason=reason) for reason in REASONS}
        assert counts == {"queue_full": 1, "ttft_limit": 1, "deadline": 1, "shed": 1}
        depths = {name: lobby.sample("diptych_admission_queued", priority=name) for name in ("high", "normal", "low")}
        assert depths == {"high": 0, "normal": 1, "low": 2}


REASONS = ("queue_full", "ttft_limit", "deadline", "shed")


async def test_limits_that_pass_end_the_wait_without_being_asked(lobby: Lobby) -> None:
    async with _busy(lobby):
        lobby.world.tokens["p0"] = 1  # soon there will be room, or so it seems
        lobby.world.limits = lobby.world.core._limits
        waits = lobby.start("limit", ttft_limit_ms=120, prompt=[1]), lobby.start("deadline", deadline_s=0.15)
        lobby.world.tokens["p0"] = 100
        with pytest.raises(NoCapacity, match="in time"):
            await waits[0]
        with pytest.raises(DeadlineExceeded):
            await waits[1]


async def test_who_leaves_the_queue_leaves_nothing(lobby: Lobby) -> None:
    async with _busy(lobby):
        gone = lobby.start("gone")
        last = lobby.start("last")
        await settled()
        gone.cancel()
        await settled()
        assert lobby.door.num_queued == 1
    await settled()
    assert lobby.went == ["first", "last"]
    last.cancel()


async def test_cancelled_in_the_moment_it_may_go(lobby: Lobby) -> None:
    """Its turn has come, but it has not heard of it: the turn is the next one's."""
    async with _busy(lobby):
        gone, last = lobby.start("gone"), lobby.start("last")
        await settled()
    for _ in range(20):
        if any(turn.done() for turn in lobby.door._waiting.values()):
            gone.cancel()
            break
        await asyncio.sleep(0)
    assert gone.cancelling()
    await settled()
    assert lobby.went == ["first", "last"]
    last.cancel()


@pytest.mark.parametrize("fail", ["before it is placed", "after"])
async def test_whatever_goes_wrong_gives_back(lobby: Lobby, fail: str) -> None:
    request = TokenRequest("a", [1] * 100, SamplingParams(max_tokens=1, seed=0))

    async def break_down() -> None:
        async with lobby.door.admitted(request, [], asyncio.get_running_loop().time() + 100) as turn:
            await settled()
            if fail == "after":
                turn.placed("d0")
            raise RuntimeError("broken")

    broken = asyncio.create_task(break_down())
    await asyncio.sleep(0)
    waits = lobby.start("b")
    with pytest.raises(RuntimeError, match="broken"):
        await broken
    await settled()
    assert lobby.went == ["b"]
    waits.cancel()


async def test_a_canary_goes_at_once(lobby: Lobby) -> None:
    async with _busy(lobby):
        lobby.start("a")
        await settled()
        canary = lobby.start("canary", canary=True)
        lobby.ends["canary"].set()
        await canary
        assert lobby.went == ["first", "canary"]


async def test_what_somebody_holds_is_not_counted(lobby: Lobby) -> None:
    """Six blocks of 16 tokens: four tokens remain."""
    async with _busy(lobby):
        lobby.start("known", hashes=6)
        lobby.start("unknown")
        await settled()
        assert [entry.ask.num_tokens for entry in lobby.door._waiting] == [100, 4, 100]
