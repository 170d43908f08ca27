from __future__ import annotations

from math import inf

from scheduler_bench import Bench, expected

from diptych.engine.interface import Kind
from diptych.errors import DeadlineExceeded


def expire(bench: Bench, now: float) -> list[str]:
    updates = bench.scheduler.expire(now)
    assert all(update.error is not None and update.error.code == DeadlineExceeded.code for update in updates)
    bench.scheduler.check()
    return [update.request_id for update in updates]


def test_a_request_ends_at_its_deadline_and_not_before() -> None:
    bench = Bench()
    bench.add("late", Kind.LOCAL, [1, 2], deadline=5.0)
    other = bench.add("other", Kind.LOCAL, [1, 3], deadline=9.0)
    bench.step()
    assert expire(bench, 4.9) == []
    assert bench.scheduler.next_deadline == 5.0
    assert expire(bench, 5.0) == ["late"]
    assert "late" not in bench.scheduler
    assert bench.scheduler.next_deadline == 9.0
    bench.run()
    assert bench.outputs["other", 0] == expected(other)
    assert len(bench.outputs["late", 0]) == 1
    assert expire(bench, 10.0) == []
    assert bench.scheduler.next_deadline == inf
    assert bench.scheduler.stats().expired_total == 1


def test_all_choices_of_an_overdue_request_end_with_one_update() -> None:
    bench = Bench()
    bench.add("late", Kind.LOCAL, [1, 2, 3], deadline=1.0, n=3)
    bench.step()
    assert expire(bench, 1.0) == ["late"]
    stats = bench.scheduler.stats()
    assert stats.blocks_used == 0
    assert stats.num_running == 0


def test_what_was_not_served_makes_room() -> None:
    bench = Bench(num_blocks=4)
    bench.add("held", Kind.PREFILL, [1] * 12, max_tokens=2)
    bench.run()
    bench.add("late", Kind.LOCAL, [2] * 12, deadline=1.0)  # waits for blocks, and all others behind it
    bench.add("small", Kind.LOCAL, [3] * 2, max_tokens=2)
    bench.run()
    assert not bench.scheduler.has_work
    assert expire(bench, 1.0) == ["late"]
    assert bench.scheduler.has_work
    bench.run()
    assert len(bench.outputs["small", 0]) == 2


def test_blocks_that_a_peer_may_write_are_quarantined() -> None:
    for ticket_left in (False, True):  # if it is on its way the scheduler does not know yet
        bench = Bench()
        bench.add("late", Kind.RECEIVE, [1] * 8, deadline=1.0)
        bench.reserve()
        if ticket_left:
            bench.scheduler.mark_in_flight("late")
        assert expire(bench, 1.0) == ["late"]
        assert bench.scheduler.stats().blocks_quarantined == 2
        assert not bench.scheduler.mark_in_flight("late")
        assert not bench.scheduler.deliver("late", [1])
        assert bench.scheduler.confirm_quiet("late")
        assert bench.scheduler.stats().blocks_free == 32


def test_a_request_that_waits_for_a_reservation_leaves_nothing() -> None:
    bench = Bench()
    bench.add("late", Kind.RECEIVE, [1] * 8, deadline=1.0)
    assert expire(bench, 1.0) == ["late"]
    assert bench.step().idle
    assert bench.scheduler.stats().blocks_free == 32


def test_blocks_that_are_being_pushed_stay_until_they_are_released() -> None:
    bench = Bench(batch=4)
    bench.add("late", Kind.PREFILL, [1] * 12, deadline=1.0)
    assert bench.step().ready  # the first block may be on its way
    assert expire(bench, 1.0) == ["late"]
    assert expire(bench, 2.0) == []
    assert bench.step().idle
    assert bench.scheduler.stats().blocks_used == 3
    assert bench.scheduler.release("late")
    assert bench.scheduler.stats().blocks_used == 0


def test_a_held_request_is_not_the_engines_business_any_more() -> None:
    bench = Bench()
    bench.add("held", Kind.PREFILL, [1] * 12, deadline=1.0)
    bench.run()
    assert expire(bench, 2.0) == []
    assert bench.scheduler.next_deadline == inf
    assert bench.scheduler.release("held")
