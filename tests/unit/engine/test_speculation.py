"""Guessing ahead changes when tokens come, never which; and it takes nothing from anybody."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from fake_runner import VOCABULARY
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import BLOCK_SIZE, Bench, expected

from diptych.engine.interface import Kind
from kv_transfer.hashing import block_hashes

GUESSING = {"speculative_tokens": 5, "speculative_ngram_min": 1}
REPETITIVE = {"top_k": 2}  # of the fake runner: mostly repeats the token two places before


def test_text_that_repeats_itself_takes_fewer_steps() -> None:
    bench = Bench(num_blocks=64, **GUESSING)
    request = bench.add("r", Kind.LOCAL, [1, 2, 1, 2], max_tokens=60, **REPETITIVE)
    bench.run()
    assert bench.outputs["r", 0] == expected(request)
    stats = bench.scheduler.stats()
    assert len(bench.plans) < 40
    assert 0 < stats.accepted_tokens_total < stats.drafted_tokens_total
    assert stats.generated_tokens_total == 60 == len(bench.plans) + stats.accepted_tokens_total
    assert max(len(update.token_ids) for outcome in bench.outcomes for update in outcome.updates) == 6


def test_a_guess_is_at_most_twice_as_long_as_what_was_right_of_the_one_before() -> None:
    bench = Bench(num_blocks=64, **GUESSING)
    bench.add("r", Kind.LOCAL, [1, 2, 1, 2], max_tokens=60, **REPETITIVE)
    bench.run()
    limit = 2
    for plan, outcome in zip(bench.plans, bench.outcomes, strict=True):
        (row,), (update,) = plan.rows, outcome.updates
        assert row.num_drafted <= limit
        if row.num_drafted:
            limit = max(1, 2 * (len(update.token_ids) - 1))


def test_off_by_default() -> None:
    bench = Bench()
    bench.add("r", Kind.LOCAL, [1] * 8, max_tokens=20, **REPETITIVE)
    bench.run()
    assert all(row.num_drafted == 0 for plan in bench.plans for row in plan.rows)
    assert bench.scheduler.stats().drafted_tokens_total == 0


def test_a_guess_gets_what_is_left_of_the_budget() -> None:
    bench = Bench(batch=8, **GUESSING)
    bench.add("a", Kind.LOCAL, [1, 1, 1], max_tokens=40, **REPETITIVE)
    while not any(row.num_drafted for plan in bench.plans for row in plan.rows):
        bench.step()
    bench.add("long", Kind.LOCAL, list(range(30)), max_tokens=1)
    for _ in range(4):
        bench.step()
        prompt_row = bench.plans[-1].rows[-1]
        assert len(prompt_row.tokens) == 7
        assert bench.plans[-1].rows[0].num_drafted == 0


def test_wrong_guesses_leave_no_blocks_and_nothing_in_the_cache() -> None:
    bench = Bench(num_blocks=64, speculative_tokens=9, speculative_ngram_min=1)
    request = bench.add("r", Kind.LOCAL, [1, 2, 3, 1, 2, 3], max_tokens=40, top_k=3)
    tokens = [*request.prompt, *expected(request)]
    true_hashes = set(block_hashes(request.hash_key, tokens, BLOCK_SIZE))
    while bench.scheduler.has_work:
        outcome = bench.step()  # checks that no block is held for tokens nobody knows
        assert {block_hash for event in outcome.cache_events for block_hash in event.stored} <= true_hashes
    stats = bench.scheduler.stats()
    assert stats.accepted_tokens_total < stats.drafted_tokens_total
    assert stats.blocks_used == 0


samplings = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 20),
        "seed": st.integers(0, 5),
        "n": st.sampled_from([1, 1, 2, 3]),
        "top_k": st.sampled_from([0, 1, 2, 3]),
        "min_tokens": st.integers(0, 4),
        "stop_token_ids": st.sampled_from([(), tuple(range(0, VOCABULARY, 7))]),
        "logprobs": st.sampled_from([None, 1]),
    }
)
prompts = st.lists(st.integers(0, 4), min_size=1, max_size=18)


@pytest.mark.parametrize("guesses", [0, 1, 6])
@settings(max_examples=60, deadline=None)
@given(requests=st.lists(st.tuples(prompts, samplings, st.integers(-1, 1)), min_size=1, max_size=5), data=st.data())
def test_the_output_is_that_of_isolated_runs(
    guesses: int, requests: list[tuple[list[int], dict[str, Any], int]], data: st.DataObject
) -> None:
    """Few blocks, so that sequences yield to each other in the middle of it all."""
    num_blocks, batch = data.draw(st.integers(10, 20)), data.draw(st.integers(1, 20))
    bench = Bench(num_blocks, batch, running=4, speculative_tokens=guesses, speculative_ngram_min=1)
    added = [
        bench.add(str(i), Kind.LOCAL, prompt, priority=priority, **sampling)
        for i, (prompt, sampling, priority) in enumerate(requests)
    ]
    bench.run()
    for request in added:
        for choice in range(request.sampling.n):
            assert bench.outputs[request.request_id, choice] == expected(request, choice)
    for update in (update for outcome in bench.outcomes for update in outcome.updates):
        asked = added[int(update.request_id)].sampling.logprobs is not None
        assert [each.token_id for each in update.logprobs or []] == (update.token_ids if asked else [])


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, samplings), min_size=2, max_size=5),
    num_blocks=st.integers(10, 16),
    batch=st.integers(2, 20),
)
def test_nobody_gets_less_because_of_a_guess(
    requests: list[tuple[list[int], dict[str, Any]]], num_blocks: int, batch: int
) -> None:
    """At every step: the same plan as without guesses, the same who yield, and a copy of the books to compare with."""
    bench = Bench(num_blocks, batch, running=4, speculative_tokens=6, speculative_ngram_min=1)
    for i, (prompt, sampling) in enumerate(requests):
        bench.add(str(i), Kind.LOCAL, prompt, **sampling)
    while bench.scheduler.has_work:
        sober = deepcopy(bench.scheduler)
        sober._planner._drafter.max_tokens = 0
        plan = sober.plan()
        bench.step()
        assert bench.scheduler.admitted == sober.admitted
        assert bench.scheduler.stats().preemptions_total == sober.stats().preemptions_total
        if plan is not None:
            known = [list(row.tokens[: len(row.tokens) - row.num_drafted]) for row in bench.plans[-1].rows]
            assert known == [list(row.tokens) for row in plan.rows]
