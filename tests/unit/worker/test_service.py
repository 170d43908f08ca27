from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_runner import FakeRunner

from decode_worker.service import DecodeService
from diptych import messages as m
from diptych.config import WorkerConfig
from diptych.engine.engine import Engine
from diptych.engine.interface import Kind
from diptych.engine.limits import Limits
from diptych.telemetry import make_logger, make_tracer
from diptych.worker.service import Parts


class InlineEngine:
    """An engine thread without a thread: commands run at once, steps when a test says so."""

    def __init__(self) -> None:
        self.engine = Engine(FakeRunner(16, 4), Limits(16, 4, 4, 64), clock=self.now)
        self.time = 50.0
        self.busy_s = 0.0  # until a step ends that a command has to wait for

    def now(self) -> float:
        return self.time

    def post(self, command: Callable[[Engine], object]) -> None:
        command(self.engine)

    async def call(self, command: Callable[[Engine], Any]) -> Any:
        self.time += self.busy_s
        return command(self.engine)


class Bench:
    def __init__(self) -> None:
        self.thread = InlineEngine()
        config = WorkerConfig(role=m.Role.DECODE, model="unused")
        parts = SimpleNamespace(
            config=config,
            worker_id="d",
            fingerprint="f",
            engine=self.thread,
            transfers=None,
            tracer=make_tracer("test", ""),
            log=make_logger("test"),
        )
        self.service = DecodeService(cast(Parts, parts))
        self.sent: list[m.Update] = []
        self.service.outbox.require = lambda router_id: None  # type: ignore[method-assign, assignment]
        self.service.outbox.send = lambda router_id, updates: self.sent.extend(updates)  # type: ignore[method-assign]

    async def start(self, remaining_ms: int, priority: int = 0) -> None:
        sampling = m.SamplingParams(max_tokens=9, seed=0)
        submission = m.Submission(
            request_id="r",
            router_id="router",
            prompt=[1, 2, 3],
            sampling=sampling,
            remaining_ms=remaining_ms,
            priority=priority,
        )
        await self.service.start(m.Start(submission=submission))

    def step(self) -> None:
        self.service.on_outcome(self.thread.engine.step())


async def test_a_submission_brings_its_priority_and_its_deadline() -> None:
    bench = Bench()
    await bench.start(remaining_ms=3_000, priority=4)
    request = bench.thread.engine.scheduler._requests.groups["r"].request
    assert (request.kind, request.priority) == (Kind.LOCAL, 4)
    assert request.deadline == pytest.approx(53.0, abs=0.5)


async def test_the_step_that_runs_when_a_request_comes_is_part_of_its_wait() -> None:
    bench = Bench()
    bench.thread.busy_s = 0.3
    await bench.start(remaining_ms=3_000)
    bench.step()
    stats = bench.sent[0].stats
    assert stats is not None
    assert stats.queue_ms == pytest.approx(300)


async def test_a_request_that_the_engine_ends_is_told_once_and_closed() -> None:
    bench = Bench()
    await bench.start(remaining_ms=3_000)
    bench.step()
    bench.thread.time += 4
    bench.step()
    assert [update.error is None for update in bench.sent] == [True, False]
    error = bench.sent[-1].error
    assert error is not None
    assert error.code == "deadline_exceeded"
    assert not (await bench.service.abort(m.Abort("r"))).known
    bench.step()
    assert len(bench.sent) == 2
    await bench.service.close()
