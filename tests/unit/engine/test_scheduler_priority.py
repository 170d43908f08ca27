"""Who goes first, who yields, and that nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import Bench, expected, firsts

from diptych.engine.interface import Kind
from diptych.engine.queues import PATIENCE_STEPS
from diptych.engine.sequence import AGING_STEPS
from diptych.messages import MAX_PRIORITY


def ended(bench: Bench) -> list[str]:
    return [u.request_id for outcome in bench.outcomes for u in outcome.updates if u.finish_reason]


def test_a_higher_priority_is_admitted_first_and_equals_in_order_of_arrival() -> None:
    bench = Bench(running=1)
    for name, priority in (("a", 0), ("low", -1), ("b", 0), ("high", 2)):
        bench.add(name, Kind.LOCAL, [1, 2], priority=priority)
    bench.run()
    assert ended(bench) == ["high", "a", "b", "low"]


def test_a_higher_priority_gets_the_token_budget_first() -> None:
    bench = Bench(batch=4)
    for name, priority in (("a", 0), ("high", 1)):
        bench.add(name, Kind.LOCAL, [1] * 12, priority=priority)
    for _ in range(3):
        bench.step()
        assert [len(row.tokens) for row in bench.plans[-1].rows] == [4]
    assert ("high", 0) in bench.outputs
    assert ("a", 0) not in bench.outputs


def test_a_higher_priority_is_granted_blocks_first() -> None:
    bench = Bench(num_blocks=2)
    bench.add("a", Kind.RECEIVE, [1] * 8, max_tokens=1)
    bench.add("high", Kind.RECEIVE, [2] * 8, max_tokens=1, priority=1)
    assert [each.request_id for each in bench.step().reservations] == ["high"]


def test_the_lowest_priority_yields_though_it_was_admitted_first() -> None:
    bench = Bench(num_blocks=6)
    low = bench.add("low", Kind.LOCAL, [0] * 8, max_tokens=12, priority=-1)
    bench.step()
    others = [bench.add(name, Kind.LOCAL, [i] * 8, max_tokens=8) for i, name in enumerate("ab", 1)]
    bench.run()
    assert bench.scheduler.stats().preemptions_total > 0
    assert ended(bench) == ["a", "b", "low"]
    for request in (low, *others):
        assert bench.outputs[request.request_id, 0] == expected(request)


def test_nobody_is_preempted_to_admit_another() -> None:
    bench = Bench(num_blocks=4)
    bench.add("low", Kind.LOCAL, [0] * 8, max_tokens=5, priority=-MAX_PRIORITY)
    bench.step()
    bench.add("high", Kind.LOCAL, [1] * 12, priority=MAX_PRIORITY)
    bench.run()
    assert ended(bench) == ["low", "high"]
    assert bench.scheduler.stats().preemptions_total == 0


@pytest.mark.parametrize("num_steps", [0, 1, AGING_STEPS - 1, AGING_STEPS, AGING_STEPS + 1])
def test_a_point_of_priority_weighs_as_much_as_so_many_steps_of_waiting(num_steps: int) -> None:
    bench = Bench(num_blocks=40, running=1, context=1_000)
    bench.add("running", Kind.LOCAL, [0], max_tokens=150)
    bench.step()
    bench.add("old", Kind.LOCAL, [1])
    for _ in range(num_steps):
        bench.step()
    bench.add("new", Kind.LOCAL, [2], priority=1)
    bench.run()
    order = ["old", "new"] if num_steps >= AGING_STEPS else ["new", "old"]
    assert ended(bench) == ["running", *order]


arrivals = st.lists(
    st.tuples(st.integers(0, 40), st.integers(-2, 2), st.sampled_from([Kind.LOCAL, Kind.RECEIVE]), st.integers(1, 20)),
    min_size=2,
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, num_blocks=st.integers(8, 20), running=st.integers(1, 3))
def test_nobody_is_overtaken_by_who_comes_too_much_later(
    arrivals: list[tuple[int, int, Kind, int]], num_blocks: int, running: int
) -> None:
    """Blocks are first given in order of rank: what overtakes came before its priority had been outwaited."""
    bench = Bench(num_blocks, batch=8, running=running)
    came: dict[str, tuple[int, int, Kind]] = {}  # step, priority, kind
    admitted: list[str] = []
    for i, (gap, priority, kind, length) in enumerate(arrivals):
        came[str(i)] = (bench.scheduler.stats().steps_total, priority, kind)
        bench.add(str(i), kind, [i] * length, priority=priority, max_tokens=9)
        for _ in range(gap):
            admitted += step(bench)
    while len(set(admitted)) < len(arrivals):
        admitted += step(bench)
    order = list(dict.fromkeys(admitted))
    for i, first in enumerate(order):
        for later in order[i + 1 :]:
            (step_a, priority_a, kind), (step_b, priority_b, passed) = came[first], came[later]
            patience = PATIENCE_STEPS if kind is Kind.RECEIVE and passed is Kind.LOCAL else 0
            assert step_a <= step_b + max((priority_a - priority_b) * AGING_STEPS, patience)


def step(bench: Bench) -> list[str]:
    """One step, in a world that delivers at once. Returns who was given blocks."""
    outcome = bench.step()
    admitted = list(bench.scheduler.admitted)
    for reservation in outcome.reservations:
        request = bench.scheduler._requests.groups[reservation.request_id].request
        bench.deliver(request, reservation, firsts(request))
    return admitted


def stream_of(bench: Bench, kind: Kind, priority: int) -> Iterator[None]:
    """Two new requests with each step, more than can be served."""
    number = 0
    while True:
        for _ in range(2):
            bench.add(f"stream-{number}", kind, [number % 40] * 4, priority=priority, max_tokens=6)
            number += 1
        step(bench)
        yield


@pytest.mark.parametrize(("kind", "priority"), [(Kind.LOCAL, 1), (Kind.RECEIVE, 1), (Kind.RECEIVE, 0), (Kind.LOCAL, 0)])
@pytest.mark.parametrize("patient", [Kind.LOCAL, Kind.RECEIVE])
def test_nobody_starves_in_an_endless_stream(kind: Kind, priority: int, patient: Kind) -> None:
    bench = Bench(num_blocks=12, batch=8, running=2)
    stream = stream_of(bench, kind, priority)
    next(stream)
    bench.add("patient", patient, [49] * 20, max_tokens=16)
    # What goes before it: what came within the aging time, two with each step, six steps each, two at a time.
    for _ in range(AGING_STEPS * 6 + 200):
        next(stream)
        if "patient" not in bench.scheduler:
            break
    assert len(bench.outputs["patient", 0]) == 16 - (patient is Kind.RECEIVE)


def test_a_stream_of_deliveries_does_not_take_every_place() -> None:
    """A delivered request has blocks and goes before who waits for a place; so grants must stop after a while."""
    bench = Bench(num_blocks=200, batch=8, running=2)
    stream = stream_of(bench, Kind.RECEIVE, 0)
    next(stream)
    bench.add("patient", Kind.LOCAL, [49] * 4)
    for _ in range(PATIENCE_STEPS + 400):
        next(stream)
    assert len(bench.outputs["patient", 0]) == 4
