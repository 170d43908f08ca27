"""A scheduler over the fake runner, driven by hand, and what an isolated run of a request must say."""

from __future__ import annotations

from math import inf
from typing import Any

from fake_runner import FakeRunner, reference

from diptych.engine.interface import EngineRequest, Kind, Plan, Reservation, StepOutcome
from diptych.engine.limits import Limits
from diptych.engine.scheduler import Scheduler
from diptych.messages import LegStats, SamplingParams

BLOCK_SIZE = 4


class Bench:
    """A scheduler and a fake runner, driven by hand."""

    def __init__(
        self, num_blocks: int = 32, batch: int = 16, running: int = 8, context: int = 256, **more: int
    ) -> None:
        self.scheduler = Scheduler(Limits(batch, running, BLOCK_SIZE, context, **more), num_blocks)
        self.runner = FakeRunner(num_blocks, BLOCK_SIZE)
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.outcomes: list[StepOutcome] = []
        self.plans: list[Plan] = []

    def add(
        self,
        name: str,
        kind: Kind,
        prompt: list[int],
        first_block: int = 0,
        priority: int = 0,
        deadline: float = inf,
        **sampling: Any,
    ) -> EngineRequest:
        params = SamplingParams(**{"max_tokens": 4, "seed": 1, **sampling})
        request = EngineRequest(name, kind, tuple(prompt), params, b"k" * 32, first_block, priority, deadline)
        self.scheduler.add(request)
        return request

    def step(self) -> StepOutcome:
        plan = self.scheduler.plan()
        if plan is None:
            return StepOutcome()
        outcome = self.scheduler.commit(plan, self.runner.execute(plan))
        self.plans.append(plan)
        self.outcomes.append(outcome)
        for update in outcome.updates:
            self.outputs.setdefault((update.request_id, update.choice), []).extend(update.token_ids)
        self.scheduler.check()
        return outcome

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def reserve(self) -> Reservation:
        (reservation,) = self.step().reservations
        return reservation

    def deliver(self, request: EngineRequest, reservation: Reservation, first_tokens: list[int]) -> bool:
        self.scheduler.mark_in_flight(request.request_id)
        self.runner.fill([slot.block for slot in reservation.slots], reservation.first_block, request.prompt)
        return self.scheduler.deliver(request.request_id, first_tokens)

    def stats_of(self, name: str) -> list[LegStats]:
        updates = [update for outcome in self.outcomes for update in outcome.updates if update.request_id == name]
        return [update.stats for update in updates if update.stats is not None]


def expected(request: EngineRequest, choice: int = 0) -> list[int]:
    return reference(request.prompt, request.sampling, choice)[0]


def firsts(request: EngineRequest) -> list[int]:
    return [expected(request, choice)[0] for choice in range(request.sampling.n)]
