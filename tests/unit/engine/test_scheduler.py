from __future__ import annotations

from typing import Any

import pytest
from fake_runner import VOCABULARY
from scheduler_bench import Bench, expected, firsts

from diptych.engine.interface import EngineRequest, Kind, Plan
from diptych.engine.sequence import finish_reason
from diptych.errors import BadRequest, PromptTooLong
from diptych.messages import FinishReason, LegStats, SamplingParams


@pytest.mark.parametrize(
    ("token", "position", "reason"),
    [
        (5, 0, None),
        (5, 1, None),  # token number 2 of min_tokens 2
        (5, 2, FinishReason.STOP),
        (6, 2, None),
        (6, 3, FinishReason.LENGTH),
        (5, 3, FinishReason.STOP),
    ],
)
def test_finish_reason(token: int, position: int, reason: FinishReason | None) -> None:
    sampling = SamplingParams(max_tokens=4, seed=0, stop_token_ids=(5,), min_tokens=2)
    assert finish_reason(token, position, sampling) == (
        None if reason is FinishReason.STOP and position < 2 else reason
    )


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9, 31])
def test_a_local_request_runs_to_its_end(length: int) -> None:
    bench = Bench()
    request = bench.add("r", Kind.LOCAL, list(range(length)), max_tokens=9)
    bench.run()
    assert bench.outputs["r", 0] == expected(request)
    assert bench.stats_of("r") == [LegStats(prompt_computed=length)]
    assert "r" not in bench.scheduler


def test_the_stop_token_is_part_of_the_output() -> None:
    bench = Bench()
    stop = tuple(range(0, VOCABULARY, 3))
    request = bench.add("r", Kind.LOCAL, [1, 2, 3], max_tokens=50, stop_token_ids=stop)
    bench.run()
    assert bench.outputs["r", 0] == expected(request)
    assert bench.outputs["r", 0][-1] in stop
    assert bench.outcomes[-1].updates[-1].finish_reason is FinishReason.STOP


def test_a_chunk_never_exceeds_the_budget_and_decoding_goes_first() -> None:
    bench = Bench(batch=6)
    bench.add("old", Kind.LOCAL, [1, 2, 3], max_tokens=20)
    bench.step()
    bench.add("long", Kind.LOCAL, list(range(14)), max_tokens=2)
    sizes = []
    for _ in range(3):
        bench.step()
        sizes.append([len(row.tokens) for row in bench.plans[-1].rows])
    assert sizes == [[1, 5], [1, 5], [1, 4]]


def test_a_cached_prefix_is_not_computed_again_but_the_last_token_is() -> None:
    bench = Bench()
    prompt = list(range(8))
    bench.add("a", Kind.LOCAL, prompt)
    bench.run()
    again = bench.add("b", Kind.LOCAL, prompt)
    bench.run()
    assert bench.outputs["b", 0] == expected(again)
    assert bench.stats_of("b") == [LegStats(prompt_computed=4, prompt_cached=4)]  # 7 // 4 blocks at most
    stats = bench.scheduler.stats()
    assert (stats.prompt_tokens_computed_total, stats.prompt_tokens_cached_total) == (12, 4)


def test_generated_blocks_are_cached_too() -> None:
    bench = Bench()
    first = bench.add("a", Kind.LOCAL, [1, 2, 3], max_tokens=8)
    bench.run()
    bench.add("b", Kind.LOCAL, [1, 2, 3, *expected(first), 9], max_tokens=1)
    bench.run()
    assert bench.stats_of("b") == [
        LegStats(prompt_computed=4, prompt_cached=8)
    ]  # KV of the last token was not computed


def test_another_hash_key_shares_nothing() -> None:
    bench = Bench()
    bench.add("a", Kind.LOCAL, list(range(8)))
    bench.run()
    other = EngineRequest("b", Kind.LOCAL, tuple(range(8)), SamplingParams(max_tokens=1, seed=1), b"x" * 32)
    bench.scheduler.add(other)
    bench.run()
    assert bench.stats_of("b") == [LegStats(prompt_computed=8)]


def test_choices_share_the_prompt_and_copy_its_partial_block() -> None:
    bench = Bench()
    request = bench.add("r", Kind.LOCAL, list(range(10)), n=3, max_tokens=6)
    bench.step()
    assert bench.scheduler.stats().blocks_used == 3
    bench.step()
    assert len(bench.plans[-1].copies) == 2
    assert bench.scheduler.stats().blocks_used == 2 + 3
    bench.run()
    assert [bench.outputs["r", choice] for choice in range(3)] == [expected(request, choice) for choice in range(3)]
    assert bench.scheduler.stats().prompt_tokens_computed_total == 10


def test_no_copy_when_the_prompt_ends_with_a_block() -> None:
    bench = Bench()
    bench.add("r", Kind.LOCAL, list(range(8)), n=2)
    bench.run()
    assert not any(plan.copies for plan in bench.plans)


@pytest.mark.parametrize(("prompt", "max_tokens", "numbers"), [(250, 10, ("260", "256")), (100, 40, ("140", "128"))])
def test_what_can_never_fit_is_refused_with_both_numbers(
    prompt: int, max_tokens: int, numbers: tuple[str, str]
) -> None:
    bench = Bench(num_blocks=32)
    with pytest.raises(PromptTooLong) as caught:
        bench.add("r", Kind.LOCAL, [1] * prompt, max_tokens=max_tokens)
    assert all(number in caught.value.message for number in numbers)
    assert not bench.scheduler.has_work


def test_what_just_fits_finishes() -> None:
    bench = Bench(num_blocks=4)
    request = bench.add("r", Kind.LOCAL, [1] * 10, max_tokens=7)  # the KV of the 17th token is never computed
    bench.run()
    assert bench.outputs["r", 0] == expected(request)


def test_bad_requests_are_refused() -> None:
    bench = Bench()
    with pytest.raises(BadRequest):
        bench.add("r", Kind.LOCAL, [])
    bench.add("r", Kind.LOCAL, [1])
    with pytest.raises(BadRequest):
        bench.add("r", Kind.LOCAL, [1])


def test_the_newest_sequence_yields_and_its_output_does_not_change() -> None:
    bench = Bench(num_blocks=6)
    requests = [bench.add(name, Kind.LOCAL, [i] * 8, max_tokens=12) for i, name in enumerate("abc")]
    bench.run()
    assert bench.scheduler.stats().preemptions_total > 0
    for request in requests:
        assert bench.outputs[request.request_id, 0] == expected(request)
    ended = [u.request_id for o in bench.outcomes for u in o.updates if u.finish_reason]
    assert ended == ["a", "b", "c"]


def test_who_yielded_goes_before_who_never_ran() -> None:
    bench = Bench(num_blocks=6)
    for i, name in enumerate("ab"):
        bench.add(name, Kind.LOCAL, [i] * 8, max_tokens=12)
    bench.step()
    bench.add("c", Kind.LOCAL, [2] * 8, max_tokens=1)  # would fit where b yielded
    bench.run()
    assert bench.scheduler.stats().preemptions_total > 0
    ended = [u.request_id for o in bench.outcomes for u in o.updates if u.finish_reason]
    assert ended[0] == "a"  # then there is room for b, and for c beside it


def test_a_request_whose_blocks_are_being_pushed_never_yields() -> None:
    bench = Bench(num_blocks=8, batch=5)
    old = bench.add("old", Kind.LOCAL, [1] * 4, max_tokens=12)
    bench.step()
    bench.add("pushed", Kind.PREFILL, [2] * 24)  # takes all blocks but one: old runs out half-way
    bench.run()
    assert bench.scheduler.stats().preemptions_total == 1
    assert len(bench.outputs["old", 0]) < 12
    announced = [block for outcome in bench.outcomes for ready in outcome.ready for block in ready.blocks]
    assert len(set(announced)) == 6
    assert not bench.scheduler.has_work
    assert bench.scheduler.release("pushed")
    bench.run()
    assert bench.outputs["old", 0] == expected(old)


def test_a_large_reservation_is_not_overtaken_for_ever() -> None:
    bench = Bench(num_blocks=8)
    bench.add("first", Kind.LOCAL, [1] * 8, max_tokens=8)
    bench.step()
    bench.add("large", Kind.RECEIVE, [2] * 28, max_tokens=1)
    bench.add("small", Kind.LOCAL, [3] * 4, max_tokens=1)
    for _ in range(3):
        bench.step()
        assert ("small", 0) not in bench.outputs


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    bench = Bench(num_blocks=8)
    bench.add("first", Kind.LOCAL, [1] * 8, max_tokens=8)
    bench.step()
    bench.add("large", Kind.LOCAL, [2] * 28, max_tokens=1)
    receive = bench.add("small", Kind.RECEIVE, [3] * 4)
    for _ in range(3):
        assert bench.step().reservations == []
    bench.run()
    assert bench.outputs["large", 0]
    (reservation,) = [each for outcome in bench.outcomes for each in outcome.reservations]
    assert bench.deliver(receive, reservation, firsts(receive))


def test_a_prefill_request_announces_each_block_once_and_is_held() -> None:
    bench = Bench(batch=5)
    request = bench.add("p", Kind.PREFILL, list(range(11)), n=2, first_block=1)
    ready = [each for _ in range(3) for each in bench.step().ready]
    assert [(each.first_index, len(each.blocks), each.last) for each in ready] == [(1, 1, False), (2, 1, True)]
    assert ready[-1].first_tokens == firsts(request)
    assert not ready[-1].finished
    assert [bench.outputs["p", choice] for choice in range(2)] == [[token] for token in firsts(request)]
    assert bench.stats_of("p") == [LegStats(prompt_computed=11)]
    assert not bench.scheduler.has_work
    assert bench.scheduler.stats().blocks_used == 3
    assert bench.scheduler.release("p")
    assert not bench.scheduler.release("p")
    assert bench.scheduler.stats().blocks_used == 0


@pytest.mark.parametrize("within_a_step", [False, True])
def test_a_prefill_request_on_hold_computes_nothing_but_keeps_its_blocks(within_a_step: bool) -> None:
    bench = Bench(batch=8)
    bench.add("p", Kind.PREFILL, list(range(12)))
    bench.step()
    if within_a_step:
        plan = bench.scheduler.plan()
        assert plan is not None
        assert bench.scheduler.hold("p")
        outcome = bench.scheduler.commit(plan, bench.runner.execute(plan))
        assert outcome.updates == []
        assert outcome.ready == []
    else:
        assert bench.scheduler.hold("p")
    assert bench.step().idle
    assert bench.scheduler.stats().blocks_used == 3
    assert bench.scheduler.release("p")
    assert bench.scheduler.stats().blocks_used == 0
    bench.scheduler.check()


def test_cached_blocks_are_announced_with_the_first_commit() -> None:
    bench = Bench(batch=4)
    prompt = list(range(16))
    bench.add("warm", Kind.LOCAL, prompt[:8], max_tokens=1)
    bench.run()
    bench.add("p", Kind.PREFILL, prompt)
    (ready,) = bench.step().ready
    assert (ready.first_index, len(ready.blocks), ready.last) == (0, 3, False)
    (ready,) = bench.step().ready
    assert (ready.first_index, len(ready.blocks), ready.last) == (3, 1, True)


@pytest.mark.parametrize("sampling", [{"max_tokens": 1}, {"stop_token_ids": tuple(range(VOCABULARY))}])
def test_a_prefill_request_whose_choices_all_end_is_finished(sampling: dict[str, Any]) -> None:
    bench = Bench()
    bench.add("p", Kind.PREFILL, [1, 2, 3], n=2, **sampling)
    (ready,) = bench.step().ready
    assert ready.finished
    assert all(update.finish_reason for update in bench.outcomes[-1].updates)
    assert bench.scheduler.release("p")


def test_a_received_prompt_is_not_computed_here() -> None:
    bench = Bench()
    request = bench.add("r", Kind.RECEIVE, list(range(10)), n=2, max_tokens=6)
    reservation = bench.reserve()
    assert (reservation.first_block, len(reservation.slots)) == (0, 3)
    assert bench.scheduler.stats().blocks_reserved == 3
    assert bench.scheduler.mark_in_flight("r")
    assert bench.scheduler.stats().blocks_in_flight == 3
    assert bench.deliver(request, reservation, firsts(request))
    bench.run()
    for choice in range(2):
        assert bench.outputs["r", choice] == expected(request, choice)[1:]  # the first token is told once, elsewhere
    assert bench.outcomes[-1].updates[0].position == 5
    assert bench.stats_of("r") == [LegStats(prompt_transferred=10)]
    stats = bench.scheduler.stats()
    assert (stats.prompt_tokens_computed_total, stats.prompt_tokens_transferred_total) == (0, 10)


def test_a_received_prefix_is_cached_and_only_the_rest_is_asked_for() -> None:
    bench = Bench()
    first = bench.add("a", Kind.RECEIVE, list(range(8)), max_tokens=2)
    bench.deliver(first, bench.reserve(), firsts(first))
    (event,) = bench.step().cache_events
    assert len(event.stored) == 2
    second = bench.add("b", Kind.RECEIVE, list(range(12)), max_tokens=2)
    reservation = bench.reserve()
    assert (reservation.first_block, len(reservation.slots)) == (2, 1)
    bench.deliver(second, reservation, firsts(second))
    bench.run()
    assert bench.outputs["b", 0] == expected(second)[1:]
    assert bench.stats_of("b") == [LegStats(prompt_cached=8, prompt_transferred=4)]


def test_choices_that_ended_with_their_first_token_end_silently() -> None:
    bench = Bench()
    request = bench.add("r", Kind.RECEIVE, [1, 2, 3], n=2, max_tokens=5, stop_token_ids=())
    first_tokens = firsts(request)
    assert first_tokens[0] != first_tokens[1]
    stopping = bench.add("s", Kind.RECEIVE, [1, 2, 3], n=2, max_tokens=5, stop_token_ids=(first_tokens[0],))
    for each, reservation in zip((request, stopping), bench.step().reservations, strict=True):
        assert bench.deliver(each, reservation, first_tokens)
    bench.run()
    assert ("s", 0) not in bench.outputs
    assert bench.outputs["s", 1] == expected(stopping, 1)[1:]

    last = bench.add("t", Kind.RECEIVE, [1, 2, 3], max_tokens=1)
    assert bench.deliver(last, bench.reserve(), firsts(last))
    assert "t" not in bench.scheduler
    assert bench.scheduler.stats().blocks_used == 0


def test_a_delivered_prompt_is_cached_even_if_nothing_follows() -> None:
    bench = Bench()
    request = bench.add("r", Kind.RECEIVE, list(range(8)), max_tokens=1)
    assert bench.deliver(request, bench.reserve(), firsts(request))
    (event,) = bench.step().cache_events
    assert len(event.stored) == 2


@pytest.mark.parametrize("n", [1, 3])
def test_a_corrupt_delivery_is_recomputed_and_nothing_is_told_twice(n: int) -> None:
    bench = Bench()
    request = bench.add("r", Kind.RECEIVE, list(range(10)), n=n, max_tokens=6)
    reservation = bench.reserve()
    bench.scheduler.mark_in_flight("r")
    bench.runner.garbage([slot.block for slot in reservation.slots])
    assert bench.scheduler.recompute("r", firsts(request))
    bench.run()
    for choice in range(n):
        assert bench.outputs["r", choice] == expected(request, choice)[1:]
    assert bench.stats_of("r") == [LegStats(prompt_computed=10)]
    assert bench.scheduler.stats().prompt_tokens_transferred_total == 0


def test_reservations_wait_for_blocks_in_order() -> None:
    bench = Bench(num_blocks=4)
    first = bench.add("a", Kind.RECEIVE, list(range(12)), max_tokens=2)
    bench.add("b", Kind.RECEIVE, [9] * 8, max_tokens=2)
    bench.add("c", Kind.RECEIVE, [8] * 2, max_tokens=2)  # would fit at once, but b was first
    reservation = bench.reserve()
    assert reservation.request_id == "a"
    assert not bench.step().reservations
    assert not bench.scheduler.has_work
    bench.deliver(first, reservation, firsts(first))
    assert not bench.step().reservations  # b still lacks a block; this step ends a
    assert [each.request_id for each in bench.step().reservations] == ["b", "c"]


def test_an_aborted_transfer_is_quarantined_until_it_is_quiet() -> None:
    bench = Bench(num_blocks=4)
    bench.add("a", Kind.RECEIVE, list(range(12)))
    reservation = bench.reserve()
    bench.scheduler.mark_in_flight("a")
    assert bench.scheduler.abort("a")
    assert bench.scheduler.stats().blocks_quarantined == 3
    request = bench.add("b", Kind.LOCAL, [5] * 8, max_tokens=5)
    bench.run()
    assert not bench.outputs
    bench.runner.garbage([slot.block for slot in reservation.slots])
    assert bench.scheduler.confirm_quiet("a")
    bench.run()
    assert bench.outputs["b", 0] == expected(request)


def test_a_reservation_whose_ticket_never_left_is_free_at_once() -> None:
    bench = Bench()
    bench.add("a", Kind.RECEIVE, list(range(12)))
    bench.reserve()
    assert bench.scheduler.abort("a")
    assert bench.scheduler.stats().blocks_free == 32
    assert not bench.scheduler.confirm_quiet("a")


def test_a_reservation_aborted_while_the_step_ran_is_not_handed_out() -> None:
    bench = Bench()
    bench.add("a", Kind.RECEIVE, list(range(12)))
    plan = bench.scheduler.plan()
    assert plan is not None
    assert plan.rows == []
    bench.scheduler.abort("a")
    assert bench.scheduler.commit(plan, []).reservations == []


def test_inputs_that_come_late_are_ignored() -> None:
    scheduler = Bench().scheduler
    assert not scheduler.abort("x")
    assert not scheduler.release("x")
    assert not scheduler.hold("x")
    assert not scheduler.mark_in_flight("x")
    assert not scheduler.confirm_quiet("x")
    assert not scheduler.deliver("x", [1])
    assert not scheduler.recompute("x", [1])


def test_the_wrong_number_of_first_tokens_is_an_error_and_changes_nothing() -> None:
    bench = Bench()
    request = bench.add("r", Kind.RECEIVE, [1, 2, 3], n=2)
    reservation = bench.reserve()
    with pytest.raises(ValueError, match="1 first tokens for 2 choices"):
        bench.scheduler.deliver("r", [1])
    assert bench.deliver(request, reservation, firsts(request))


def test_a_plan_must_be_committed_before_the_next() -> None:
    bench = Bench()
    bench.add("r", Kind.LOCAL, [1, 2, 3])
    assert bench.scheduler.plan() is not None
    with pytest.raises(RuntimeError, match="not committed"):
        bench.scheduler.plan()


def test_the_same_inputs_give_the_same_plans() -> None:
    def record() -> list[Plan]:
        bench = Bench(num_blocks=8, batch=6, running=3)
        for i in range(6):
            bench.add(f"r{i}", Kind.LOCAL, [i % 2] * (3 + i), n=1 + i % 2, max_tokens=7)
        bench.run()
        return bench.plans

    assert record() == record()
