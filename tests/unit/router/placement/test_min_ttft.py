"""The search prunes; what it leaves out must not have been better. Costs come from `weigh`, term by term."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_views import PROMPT, choose, decode, prefill

from router.placement import Learnt, Link, WorkerView
from router.placement.dice import Dice
from router.placement.named import policy_named
from router.placement.weigh import weigh

RATES = st.sampled_from([0.0, 280.0, 1_000.0, 1_900.0])
LINKS = st.builds(Link, st.floats(1e5, 1e9), st.floats(0.0, 50.0))


@st.composite
def fleets(draw: st.DrawFn) -> list[WorkerView]:
    """Up to eight of each role: as many as a decision remembers."""
    decodes = [f"d{i}" for i in range(draw(st.integers(1, 8)))]
    prefills = [
        prefill(
            f"p{i}",
            matched_tokens=draw(st.integers(0, 159)),
            queued_prefill_tokens=draw(st.integers(0, 300)),
            prefill_tokens_per_s=draw(RATES),
            chunk_tokens=draw(st.sampled_from([0, 32, 512])),
            transfer_bytes_per_s=draw(st.sampled_from([0.0, 1e6])),
            links={name: draw(LINKS) for name in decodes if draw(st.booleans())},
        )
        for i in range(draw(st.integers(1, 8)))
    ]
    return prefills + [
        decode(
            name,
            matched_tokens=draw(st.integers(0, 159)),
            queued_prefill_tokens=draw(st.integers(0, 300)),
            num_running=draw(st.integers(0, 20)),
            prefill_tokens_per_s=draw(RATES),
            decode_ms_per_sequence=draw(st.sampled_from([0.0, 0.5, 3.0])),
            chunk_tokens=draw(st.sampled_from([0, 32])),
        )
        for name in decodes
    ]


@settings(max_examples=300)
@given(fleets(), st.integers(0, 9), st.sampled_from([1.0, 100.0]))
def test_no_pair_is_cheaper_than_the_one_that_was_found(fleet: list[WorkerView], turn: int, tokens: float) -> None:
    placed = choose(*fleet, remote="always", turn=turn, learnt=Learnt(tokens))
    assert placed.considered is not None
    candidates = weigh(placed.considered)
    chosen = next(each for each in candidates if (each.prefill, each.decode) == (placed.prefill_id, placed.decode_id))
    assert len(candidates) == len(placed.considered.prefills) * len(placed.considered.decodes)
    assert chosen.cost_ms <= min(each.cost_ms for each in candidates) + 1e-6
    assert chosen.ttft_ms == pytest.approx(placed.expected_ms)
    assert chosen.exposed_transfer_ms == pytest.approx(placed.exposed_ms)


@settings(max_examples=300)
@given(fleets(), st.integers(0, 9))
def test_decode_computes_alone_only_where_that_is_the_cheapest_by_more_than_the_doubt(
    fleet: list[WorkerView], turn: int
) -> None:
    learnt = Learnt(10.0, error=0.1)
    placed = choose(*fleet, turn=turn, learnt=learnt)
    assert placed.considered is not None
    candidates = weigh(placed.considered)
    pair = min((each for each in candidates if each.prefill), key=lambda each: each.cost_ms)
    alone = min((each for each in candidates if not each.prefill), key=lambda each: each.cost_ms)
    if placed.prefill_id == "":
        assert alone.cost_ms < pair.cost_ms - learnt.error * pair.ttft_ms + 1e-6
    elif all(view.prefill_tokens_per_s for view in fleet):
        assert alone.cost_ms >= pair.cost_ms - learnt.error * pair.ttft_ms - 1e-6


def test_a_longer_queue_never_makes_a_worker_more_attractive() -> None:
    fleet = [prefill("a", queued_prefill_tokens=10), prefill("b"), decode("d")]
    for queue in range(0, 200, 10):
        longer = [fleet[0], replace(fleet[1], queued_prefill_tokens=queue), fleet[2]]
        chosen = choose(*longer, remote="always").prefill_id
        assert chosen == "b" if queue < 10 else (queue == 10 or chosen == "a")


def test_the_search_ends_also_where_every_link_differs() -> None:
    """64 workers with equal queues, and links so different that bounds say little."""
    decodes = [decode(f"d{i}") for i in range(32)]
    prefills = [
        prefill(f"p{i}", links={f"d{j}": Link(1e5 * (1 + (i * 7 + j * 13) % 31), 1.0) for j in range(32)})
        for i in range(32)
    ]
    placed = choose(*prefills, *decodes, remote="always")
    quickest = max(link.bytes_per_s for p in prefills for link in p.links.values())
    assert prefills[int(placed.prefill_id[1:])].links[placed.decode_id].bytes_per_s == quickest


def test_dice_are_the_same_everywhere_and_even() -> None:
    dice = Dice(seed=7, turn=9)
    assert [dice.below(10) for _ in range(5)] == [Dice(7, 9).below(10), *[dice_at(7, 9, skip) for skip in range(1, 5)]]
    counts = [0] * 10
    for turn in range(10_000):
        counts[Dice(1, turn).below(10)] += 1
    assert max(counts) < 1_150
    assert min(counts) > 850


def dice_at(seed: int, turn: int, skip: int) -> int:
    dice = Dice(seed, turn)
    for _ in range(skip):
        dice.below(10)
    return dice.below(10)


def test_a_policy_of_ones_own_is_a_class_in_a_module() -> None:
    own = policy_named("own_policy:LastAlphabetically")
    placed = choose(prefill("a"), prefill("b"), decode("d"), policy=own)
    assert placed.prefill_id == "b"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fastest", "one of min-ttft, random"),
        ("no_such_module:Policy", "cannot be made"),
        ("own_policy:Missing", "cannot be made"),
        ("own_policy:Incomplete", "has no prefill_cost, decode_cost, pick"),
        ("own_policy:NeedsArguments", "cannot be made"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        policy_named(name)


def test_prompt_of_one_token_is_placed() -> None:
    tiny = replace(PROMPT, num_tokens=1, num_blocks=1)
    assert choose(prefill("p"), decode("d"), prompt=tiny, remote="always").expected_ms == 1.0
