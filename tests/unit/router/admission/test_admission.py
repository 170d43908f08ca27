"""Who goes, who waits and who is refused, on a fleet whose worker computes a token a millisecond."""

from __future__ import annotations

import pytest
from admission_world import AdmissionWorld

from router.admission.ask import Reason
from router.admission.line import POINT_MS, Stage


def full_world(**limits: float) -> AdmissionWorld:
    """A prefill worker that has as much to do as it is given: 100 ms."""
    world = AdmissionWorld(**limits)
    world.arrive(100)
    world.place_all()
    return world


def test_room_is_for_those_who_come_while_nobody_waits() -> None:
    world = AdmissionWorld()
    first = world.arrive(100)
    assert world.going == [first]
    second = world.arrive(1)
    assert second.stage is Stage.QUEUED  # the first is not booked yet, but it will be
    world.place_all()
    assert second.stage is Stage.QUEUED
    world.first_token(first)
    assert world.going == [first, second]
    world.core.check()


def test_a_worker_is_given_less_than_its_bound_before_a_prompt_not_with_it() -> None:
    """So that a long prompt goes too, and short ones keep a worker busy."""
    world = AdmissionWorld()
    entries = [world.arrive(40) for _ in range(5)]
    world.place_all()
    assert [entry.stage for entry in entries] == [Stage.PLACED] * 3 + [Stage.QUEUED] * 2
    assert AdmissionWorld().arrive(10_000).stage is Stage.GRANTED


def test_two_full_steps_are_room_however_long_they_take() -> None:
    world = AdmissionWorld()
    world.chunk_tokens = 200
    entries = [world.arrive(150) for _ in range(5)]
    world.place_all()
    assert [entry.stage for entry in entries].count(Stage.PLACED) == 3  # 300 tokens are less than two steps of 200


def test_a_full_batch_makes_the_next_wait_and_prompts_still_computed_do_not_count() -> None:
    """Two decode at once, and one more is let come for when one of them ends."""
    world = AdmissionWorld(num_prefill=5, slots=2)
    entries = [world.arrive(10) for _ in range(5)]
    world.place_all()
    assert all(entry.stage is Stage.PLACED for entry in entries)  # none of them decodes
    for entry in entries[:3]:
        world.first_token(entry)
    late = world.arrive(10)
    assert late.stage is Stage.QUEUED
    world.end(entries[0])
    assert late.stage is Stage.GRANTED


def test_higher_priority_goes_first_then_who_is_due_first_then_who_came_first() -> None:
    world = full_world()
    asks = {
        "late": {},
        "patient": {"ttft_limit_ms": 9_000.0},
        "due": {"ttft_limit_ms": 4_000.0},
        "last": {},
        "low": {"priority": -1, "ttft_limit_ms": 3_000.0},
        "high": {"priority": 1},
    }
    entries = {name: world.arrive(100, **ask) for name, ask in asks.items()}
    names = {entry: name for name, entry in entries.items()}
    for turn in range(len(asks)):
        world.first_token(world.going[turn])
        world.place_all()
    assert [names[entry] for entry in world.going[1:]] == ["high", "due", "patient", "late", "last", "low"]


def test_a_point_of_priority_is_worth_so_much_waiting() -> None:
    world = full_world()
    old = world.arrive(100)
    world.now_ms = POINT_MS + 1
    new = world.arrive(100, priority=1)
    other = world.arrive(100, priority=2)
    for turn in range(3):
        world.first_token(world.going[turn])
        world.place_all()
    assert world.going[1:] == [other, old, new]


def test_tenants_share_by_work_and_priority_counts_between_them() -> None:
    world = full_world(max_queued=100)
    flood = [world.arrive(100, tenant="a") for _ in range(10)]
    small = [world.arrive(50, tenant="b") for _ in range(4)]
    urgent = world.arrive(100, tenant="a", priority=1)
    for turn in range(8):
        world.first_token(world.going[turn])
        world.place_all()
    a0, a1, a2 = flood[:3]
    assert (
        world.going[1:9]
        in (  # 50 tokens each leave room for the next at once
            [urgent, *small[:2], a0, *small[2:], a1, a2],
        )
    )


def test_a_full_queue_refuses_and_says_when_it_will_have_drained() -> None:
    world = full_world(max_queued=3)
    for _ in range(3):
        world.arrive(200)
    refusal = world.refused[world.arrive(100)]
    assert refusal.reason is Reason.QUEUE_FULL
    assert refusal.retry_after_ms == pytest.approx(3 * 200, rel=0.1)
    assert refusal.expected_ms == pytest.approx(100 + 3 * 200 + 100, rel=0.1)
    assert world.core.num_queued == 3


def test_nobody_waits_where_nobody_may() -> None:
    world = full_world(max_queued=0)
    assert world.refused[world.arrive()].reason is Reason.QUEUE_FULL


def test_the_worst_of_lower_priority_gives_way_in_a_full_queue() -> None:
    world = full_world(max_queued=3)
    low = world.arrive(100, priority=-2)
    lowest = world.arrive(100, priority=-3)
    same = world.arrive(100)
    newcomer = world.arrive(100)
    assert world.refused[lowest].reason is Reason.SHED
    assert world.refused[lowest].retry_after_ms > 0
    assert newcomer.stage is Stage.QUEUED
    world.arrive(100)
    assert world.refused[low].reason is Reason.SHED
    last = world.arrive(100)
    assert world.refused[last].reason is Reason.QUEUE_FULL
    assert same.stage is Stage.QUEUED
    world.core.check()


def test_who_has_waited_long_enough_is_not_shed() -> None:
    world = full_world(max_queued=1)
    old = world.arrive(100, priority=0)
    world.now_ms = 2 * POINT_MS
    assert world.refused[world.arrive(100, priority=1)].reason is Reason.QUEUE_FULL
    assert old.stage is Stage.QUEUED


def test_a_limit_that_cannot_be_kept_is_refused_at_once() -> None:
    world = full_world()
    world.arrive(400, ttft_limit_ms=600.0)
    refusal = world.refused[world.arrive(200, ttft_limit_ms=650.0)]
    assert refusal.reason is Reason.TTFT_LIMIT
    assert refusal.expected_ms == pytest.approx(100 + 400 + 200, rel=0.1)
    assert refusal.retry_after_ms == pytest.approx(50, rel=0.1)  # then it would have been kept
    assert world.arrive(100, ttft_limit_ms=650.0).stage is Stage.QUEUED
    assert world.refused[world.arrive(1, ttft_limit_ms=50.0)].reason is Reason.TTFT_LIMIT  # the running prompt alone
    assert world.refused[world.arrive(1, deadline_ms=495.0, priority=-1)].reason is Reason.DEADLINE


def test_an_idle_worker_is_tried_however_long_a_prompt_seems_to_take() -> None:
    """Or an estimate that has become wrong could never be corrected."""
    world = AdmissionWorld()
    entry = world.arrive(1_000, ttft_limit_ms=10.0)
    assert entry.stage is Stage.GRANTED
    world.place_all()
    assert world.refused[world.arrive(5, ttft_limit_ms=10.0)].reason is Reason.TTFT_LIMIT


def test_a_limit_that_passes_ends_the_wait() -> None:
    world = full_world()
    soon, later = world.arrive(10, ttft_limit_ms=1_000.0), world.arrive(10, deadline_ms=2_000.0)
    assert world.core.next_due_ms == 1_000.0
    world.now_ms = 999.0
    world.wake()
    assert world.refused == {}
    world.now_ms = 1_000.0
    world.wake()
    assert (world.refused[soon].reason, world.refused[soon].late) == (Reason.TTFT_LIMIT, True)
    assert world.core.next_due_ms == 2_000.0
    world.now_ms = 2_000.0
    world.wake()
    assert (world.refused[later].reason, world.refused[later].late) == (Reason.DEADLINE, True)
    assert (world.core.num_queued, world.core.next_due_ms) == (0, None)


def test_a_prompt_that_would_be_late_by_now_is_not_computed() -> None:
    world = full_world()
    world.tokens["p0"] += 60  # of another router
    entry = world.arrive(50, ttft_limit_ms=500.0)
    world.now_ms = 440.0
    world.first_token(world.going[0])  # 60 remain: room, but 110 ms are too long
    assert world.refused[entry].reason is Reason.TTFT_LIMIT
    assert not world.refused[entry].late


def test_in_flight_is_bounded_too() -> None:
    world = AdmissionWorld(num_prefill=9, max_in_flight=2)
    entries = [world.arrive(1) for _ in range(4)]
    world.place_all()
    assert [entry.stage for entry in entries] == [Stage.PLACED] * 2 + [Stage.QUEUED] * 2
    world.end(entries[0])
    world.place_all()
    assert entries[2].stage is Stage.PLACED


def test_where_nobody_decodes_placement_is_asked_at_once() -> None:
    """It says what is wrong; waiting would not help."""
    world = full_world()
    waiting = world.arrive()
    world.decodes = []
    world.wake()
    assert waiting.stage is Stage.GRANTED
    world.core.leave(waiting, world.now_ms)
    assert world.arrive().stage is Stage.GRANTED


def test_decode_takes_what_it_can_compute_sooner_than_the_queue() -> None:
    world = full_world(remote_prefill="auto")
    waits = [world.arrive(400) for _ in range(3)]
    goes = waits[0]
    assert goes.stage is Stage.GRANTED  # decode is idle
    assert [entry.stage for entry in waits[1:]] == [Stage.QUEUED] * 2
    world.prefills, prefills = [], world.prefills
    world.place(goes)  # alone
    world.prefills = prefills
    world.wake()
    assert [entry.stage for entry in waits[1:]] == [Stage.QUEUED] * 2  # it has a prompt to compute now


def test_decode_that_would_disturb_many_is_left_alone() -> None:
    world = full_world(remote_prefill="auto")
    world.sequences["d0"] = 50
    assert world.arrive(400).stage is Stage.QUEUED


def test_the_estimate_learns_how_slowly_the_queue_drains() -> None:
    """Decode has two places, which are taken for two seconds each: prompts are not what they wait for."""
    world = AdmissionWorld(slots=1, max_queued=50)
    for _ in range(30):
        world.arrive(10)

    def go() -> None:
        world.place_all()
        while fresh := [entry for entry in world.going if entry.stage is Stage.PLACED]:
            for entry in fresh:
                world.first_token(entry)
            world.place_all()

    go()
    assert world.core.drained_in_ms(world.now_ms) < 1_000  # nothing better is known
    for turn in range(15):
        world.now_ms += 1_000
        world.end(world.going[turn])
        go()
    left = world.core.num_queued
    assert world.core.drained_in_ms(world.now_ms) == pytest.approx(left * 1_000, rel=0.3)
    world.now_ms += 60_000  # nothing moves any more
    assert world.core.drained_in_ms(world.now_ms) > 4 * left * 1_000


def test_who_leaves_leaves_nothing() -> None:
    world = full_world()
    queued, granted = world.arrive(), world.arrive()
    for entry in (queued, granted, world.going[0]):
        world.end(entry)
        world.end(entry)
        world.core.check()
    assert (world.core.num_queued, world.core.num_in_flight) == (0, 0)
