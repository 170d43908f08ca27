from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fake_runner import EMPTY, FakeRunner, cells_of, reference

from diptych.engine.engine import Engine
from diptych.engine.interface import Drawn, EngineRequest, Kind, Plan, ReadyBlocks, StepOutcome
from diptych.engine.limits import Limits
from diptych.messages import SamplingParams, Slot

BLOCK_SIZE = 4


class Clock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TimedRunner(FakeRunner):
    """Takes one millisecond a token."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(32, BLOCK_SIZE)
        self._clock = clock

    def execute(self, plan: Plan, kv_written: Callable[[], None] | None = None) -> list[list[Drawn]]:
        self._clock.now += plan.num_tokens * 1e-3
        return super().execute(plan, kv_written)


def engine_with(clock: Clock) -> tuple[Engine, TimedRunner]:
    runner = TimedRunner(clock)
    limits = Limits(max_batch_tokens=16, max_running=4, block_size=BLOCK_SIZE, max_context=100)
    return Engine(runner, limits, clock), runner


def request(name: str, kind: Kind, prompt: list[int], max_tokens: int = 3, n: int = 1) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=0, n=n)
    return EngineRequest(name, kind, tuple(prompt), sampling, b"k" * 32)


def test_it_measures_its_own_speed() -> None:
    engine, _ = engine_with(Clock())
    assert engine.stats().prefill_tokens_per_s == 0
    assert engine.stats().decode_step_ms == 0
    engine.add(request("a", Kind.LOCAL, list(range(20))))
    engine.add(request("b", Kind.LOCAL, list(range(30, 40))))
    while engine.has_work:
        engine.step()
    stats = engine.stats()
    assert stats.prefill_tokens_per_s == pytest.approx(1_000, rel=0.1)
    assert 1 <= stats.decode_step_ms <= 2
    assert stats.steps_total == 4
    engine.check()


def test_the_first_update_says_how_long_its_leg_waited_and_computed() -> None:
    clock = Clock()
    engine, _ = engine_with(clock)
    engine.add(request("a", Kind.LOCAL, list(range(20))))
    clock.now += 0.5
    assert engine.step().updates == []
    (update,) = engine.step().updates
    assert update.stats is not None
    assert update.stats.queue_ms == pytest.approx(500)
    assert update.stats.compute_ms == pytest.approx(20)
    assert engine.step().updates[0].stats is None


def test_waiting_for_a_delivery_is_neither_queueing_nor_computing() -> None:
    clock = Clock()
    engine, runner = engine_with(clock)
    received = request("r", Kind.RECEIVE, list(range(6)))
    engine.add(received)
    clock.now += 0.25
    (reservation,) = engine.step().reservations
    assert engine.mark_in_flight("r")
    clock.now += 10
    runner.fill([slot.block for slot in reservation.slots], 0, received.prompt)
    expected, _ = reference(received.prompt, received.sampling, 0)
    assert engine.deliver("r", expected[:1])
    (update,) = engine.step().updates
    assert update.token_ids == expected[1:2]
    assert update.stats is not None
    assert update.stats.queue_ms == pytest.approx(250)
    assert update.stats.compute_ms == pytest.approx(1)
    assert engine.stats().steps_total == 1  # granting blocks computes nothing


def test_nothing_of_an_earlier_owner_is_left_in_a_block_that_is_pushed() -> None:
    engine, runner = engine_with(Clock())
    runner.garbage(range(runner.num_blocks))
    pushed = request("p", Kind.PREFILL, list(range(6)))
    engine.add(pushed)
    (ready,) = engine.step().ready
    assert runner.cells[ready.blocks[-1]] == [*cells_of(pushed.prompt)[4:], EMPTY, EMPTY]
    assert engine.release("p")
    engine.add(request("q", Kind.PREFILL, list(range(8))))
    engine.step()
    assert len(runner.cleared) == 1  # a full last block has no tail


def test_prefill_and_decode_hand_over() -> None:
    """Two engines, blocks copied between their runners: the outputs are those of one isolated engine."""
    prefill, source = engine_with(Clock())
    decode, destination = engine_with(Clock())
    prompt = list(range(11))
    asked = request("r", Kind.RECEIVE, prompt, max_tokens=8, n=2)
    decode.add(asked)
    (reservation,) = decode.step().reservations
    decode.mark_in_flight("r")
    prefill.add(request("r", Kind.PREFILL, prompt, max_tokens=8, n=2))
    outcome = prefill.step()
    (ready,) = outcome.ready
    push(source, ready.blocks, destination, reservation.slots)
    assert decode.deliver("r", ready.first_tokens)
    assert prefill.release("r")
    outputs: list[list[int]] = [[], []]
    while outcome.updates or decode.has_work:
        for update in outcome.updates:
            assert update.position == len(outputs[update.choice])
            outputs[update.choice] += update.token_ids
        outcome = decode.step()
    assert outputs == [reference(prompt, asked.sampling, choice)[0] for choice in range(2)]
    for engine in (prefill, decode):
        stats = engine.stats()
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total


def push(source: FakeRunner, blocks: list[int], destination: FakeRunner, slots: list[Slot]) -> None:
    for block, slot in zip(blocks, slots, strict=True):
        destination.cells[slot.block] = list(source.cells[block])


def test_no_trace_of_a_request_stays() -> None:
    engine, _ = engine_with(Clock())
    engine.add(request("gone", Kind.LOCAL, [1, 2]))
    engine.abort("gone")
    engine.add(request("silent", Kind.RECEIVE, [1, 2], max_tokens=1))
    engine.step()
    engine.mark_in_flight("silent")
    assert engine.deliver("silent", [3])
    assert not engine.deliver("never", [3])
    engine.add(request("done", Kind.LOCAL, [1, 2], max_tokens=1))
    while engine.has_work:
        engine.step()
    assert engine._marks == {}
    assert engine.step() == StepOutcome()


def test_an_overdue_request_ends_between_two_steps() -> None:
    clock = Clock()
    engine, _ = engine_with(clock)
    assert engine.next_deadline_s is None
    overdue = replace(request("late", Kind.LOCAL, list(range(20))), deadline=engine.now() + 0.01)
    engine.add(overdue)
    assert engine.next_deadline_s == pytest.approx(0.01)
    engine.step()  # takes 16 ms
    assert engine.next_deadline_s == 0
    (update,) = engine.step().updates
    assert (update.request_id, update.token_ids) == ("late", [])
    assert update.error is not None
    assert update.error.code == "deadline_exceeded"
    assert engine.next_deadline_s is None
    assert engine._marks == {}
    assert engine.stats().expired_total == 1


def test_the_state_of_queues_and_steps_can_be_seen() -> None:
    engine, _ = engine_with(Clock())
    for i in range(5):
        engine.add(request(f"l{i}", Kind.LOCAL, [i] * 4))
    engine.add(request("p", Kind.PREFILL, [7] * 4))
    engine.add(request("r", Kind.RECEIVE, [8] * 4))
    waiting = engine.stats()
    assert waiting.waiting_by_kind == {"local": 5, "prefill": 1, "receive": 1}
    assert (waiting.step_tokens, waiting.step_budget) == (0, 16)
    engine.step()
    stats = engine.stats()
    assert stats.running_by_kind == {"local": 4, "prefill": 0, "receive": 0}
    assert stats.waiting_by_kind == {"local": 1, "prefill": 1, "receive": 0}
    assert (stats.num_running, stats.num_waiting, stats.num_loading, stats.num_held) == (4, 2, 1, 0)
    assert (stats.step_tokens, stats.steps_total) == (16, 1)
    assert stats.prompt_tokens_queried_total == 5 * 4
    while engine.has_work:
        engine.step()
    assert engine.stats().num_held == 1
    assert engine.stats().num_running == 0


def test_blocks_are_ready_before_their_step_draws() -> None:
    """What is announced in the middle of a step is final, its tail clean, and it is announced once."""
    engine, runner = engine_with(Clock())
    early: list[tuple[int, list[int], bool]] = []

    prompt = list(range(1, 23))  # two steps, and a last block half full
    reference_cells = cells_of(prompt)

    def on_ready(ready: list[ReadyBlocks]) -> None:
        for each in ready:
            early.append((each.first_index, each.blocks, each.last))
            cells = [cell for block in each.blocks for cell in runner.cells[block]]
            start = each.first_index * BLOCK_SIZE
            assert cells[: len(prompt) - start] == reference_cells[start : start + len(cells)]
            assert not any(cells[len(prompt) - start :])

    engine.on_ready = on_ready
    for cells in runner.cells:
        cells[:] = [7] * BLOCK_SIZE  # a stranger's
    engine.add(request("p", Kind.PREFILL, prompt))
    late = [each for _ in range(2) for each in engine.step().ready]
    assert [(first, len(blocks), last) for first, blocks, last in early] == [(0, 4, False), (4, 2, False)]
    assert [(each.first_index, each.blocks, each.last) for each in late] == [(6, [], True)]
    assert late[0].first_tokens
    engine.check()
