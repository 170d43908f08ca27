"""Placement is a pure function: these tests give it a fleet and read its choice. Sums are in `placement_views`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_views import PROMPT, choose, decode, pair_of, prefill

from diptych.errors import NoCapacity
from router.placement import REASONS, Avoid, Learnt, Link, Placement, PromptView, WorkerView, place
from router.placement.named import POLICIES, policy_named
from router.placement.weigh import weigh

# --- prefill ----------------------------------------------------------------------------------------------------------


def test_expects_the_time_the_uncached_tokens_and_the_queue_take() -> None:
    placed = choose(prefill("p", matched_tokens=60, queued_prefill_tokens=100), decode("d"), remote="prefer")
    assert placed == Placement("p", "d", 200.0, 60, "remote")
    assert placed.exposed_ms == 100.0  # all 160 ms of transfer, less what is moved while 100 tokens are computed: tail
    assert placed.matched_tokens == 60


def test_a_cached_prefix_outweighs_a_short_queue_but_not_a_long_one() -> None:
    cold = prefill("cold")
    for queue, chosen in ((50, "warm"), (400, "cold")):
        warm = prefill("warm", matched_tokens=144, queued_prefill_tokens=queue)
        assert choose(cold, warm, decode("d"), remote="prefer").prefill_id == chosen


def test_a_slow_worker_is_chosen_last() -> None:
    slow, fast = prefill("slow", prefill_tokens_per_s=100.0), prefill("fast")
    assert choose(slow, fast, decode("d"), remote="prefer").prefill_id == "fast"


def test_a_worker_that_has_measured_nothing_counts_as_its_peers_mean() -> None:
    fresh = prefill("fresh", prefill_tokens_per_s=0.0)
    assert choose(prefill("busy", queued_prefill_tokens=10), fresh, decode("d"), remote="prefer").prefill_id == "fresh"
    slow = prefill("slow", prefill_tokens_per_s=100.0, queued_prefill_tokens=1)
    assert choose(slow, fresh, decode("d"), remote="always").expected_ms == 1_600.0
    only_decode_knows = choose(fresh, decode("d", prefill_tokens_per_s=10_000.0), remote="always")
    assert only_decode_knows.expected_ms == 16.0


def test_rates_that_differ_by_noise_are_the_same_rate() -> None:
    """Or the one that measured a little more would get every prompt that nobody has seen."""
    fleet = [prefill("p0", prefill_tokens_per_s=1_010.0), prefill("p1", prefill_tokens_per_s=995.0), decode("d")]
    chosen = {choose(*fleet, turn=turn, remote="prefer").prefill_id for turn in range(32)}
    assert chosen == {"p0", "p1"}


# --- decode -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([decode("full", available_blocks=9), decode("busy", num_running=5)], "busy"),
        ([decode("busy", num_running=5), decode("idle", num_running=1)], "idle"),
        ([decode("idle", num_running=1), decode("cached", num_running=1, matched_tokens=32)], "cached"),
        ([decode("slow", decode_base_ms=30.0), decode("busy", num_running=5)], "busy"),
        ([decode("tight", available_blocks=11), decode("roomy", num_running=5)], "roomy"),
    ],
)
def test_decode_goes_where_there_is_room_then_by_its_step_time_then_by_the_transfer(
    others: list[WorkerView], chosen: str
) -> None:
    prompt = replace(PROMPT, growth_blocks=4)
    placed = choose(prefill("p"), *others, prompt=prompt, remote="prefer", learnt=Learnt(100.0))
    assert placed.decode_id == chosen


def test_a_long_completion_is_worth_a_longer_transfer_for_a_smaller_batch() -> None:
    fleet = [prefill("p"), decode("cached", matched_tokens=144, num_running=9), decode("idle")]
    for tokens, chosen in ((1.0, "cached"), (100.0, "idle")):
        assert choose(*fleet, remote="prefer", learnt=Learnt(tokens)).decode_id == chosen


def test_a_decode_worker_that_has_measured_no_step_counts_as_its_peers_mean() -> None:
    fresh = decode("fresh", decode_base_ms=0.0, decode_ms_per_sequence=0.0)
    fleet = [prefill("p"), decode("d", num_running=3), fresh]
    assert choose(*fleet, remote="prefer", learnt=Learnt(100.0)).decode_id == "fresh"
    fresh = replace(fresh, num_running=4)
    assert choose(*fleet[:2], fresh, remote="prefer", learnt=Learnt(100.0)).decode_id == "d"


def test_where_nobody_has_measured_anything_the_smaller_batch_is_chosen_then_the_longer_match() -> None:
    blank = {"decode_base_ms": 0.0, "decode_ms_per_sequence": 0.0, "prefill_tokens_per_s": 0.0}
    p = prefill("p", prefill_tokens_per_s=0.0, transfer_bytes_per_s=0.0)
    busy = decode("busy", num_running=2, matched_tokens=64, **blank)
    assert choose(p, busy, decode("idle", num_running=1, **blank), remote="prefer").decode_id == "idle"
    even = [decode("cold", num_running=2, **blank), busy]
    assert choose(p, *even, remote="prefer").decode_id == "busy"


# --- links ------------------------------------------------------------------------------------------------------------


def test_the_pair_with_the_better_link_is_chosen() -> None:
    near, far = Link(1e9, 1.0), Link(1e5, 20.0)
    p0 = prefill("p0", links={"d0": far, "d1": near})
    p1 = prefill("p1", links={"d0": near, "d1": far})
    for turn in range(8):
        placed = choose(p0, p1, decode("d0"), decode("d1"), remote="prefer", turn=turn)
        assert pair_of(placed) in {("p0", "d1"), ("p1", "d0")}
    busy = replace(p1, queued_prefill_tokens=50)
    assert pair_of(choose(p0, busy, decode("d0"), decode("d1"), remote="prefer")) == ("p0", "d1")


@pytest.mark.parametrize(
    ("changes", "exposed_ms"),
    [
        ({}, 10.0 + 160.0),  # all in one chunk: nothing is moved before it is computed
        ({"chunk_tokens": 40}, 10.0 + 40.0),  # the last chunk
        ({"chunk_tokens": 40, "prefill_tokens_per_s": 10_000.0}, 10.0 + 144.0),  # the link falls behind
        ({"matched_tokens": 144}, 10.0 + 144.0),  # cached blocks go at once, but they take longer than 16 tokens do
    ],
)
def test_exposed_is_what_could_not_be_moved_meanwhile(changes: dict[str, float], exposed_ms: float) -> None:
    p = prefill("p", links={"d": Link(1e6, 10.0)}, **changes)
    assert choose(p, decode("d"), remote="prefer").exposed_ms == pytest.approx(exposed_ms)


# --- decode alone -----------------------------------------------------------------------------------------------------


def test_decode_computes_the_prompt_itself_when_its_own_cache_makes_that_sooner() -> None:
    placed = choose(prefill("p"), decode("d", matched_tokens=144))
    assert (*pair_of(placed), placed.reason) == ("", "d", "cached_on_decode")
    assert (placed.predicted_cached, placed.expected_ms) == (144, 16.0)


def test_decode_computes_the_prompt_itself_when_prefill_is_busy() -> None:
    p = prefill("p", queued_prefill_tokens=1_000, links={"d": Link(1e9, 0.1)})
    assert choose(p, decode("d")).reason == "prefill_busy"


def test_an_idle_decode_worker_keeps_what_is_not_worth_moving() -> None:
    slow_link = {"d": Link(1e6, 5.0)}
    assert choose(prefill("p", links=slow_link), decode("d")).reason == "transfer_outweighs"
    quick_link = {"d": Link(1e9, 0.1)}
    assert choose(prefill("p", links=quick_link), decode("d")).reason == "remote"


def test_what_was_predicted_badly_has_to_be_the_clearer() -> None:
    fleet = [prefill("p", links={"d": Link(1e9, 30.0)}), decode("d")]
    assert choose(*fleet, learnt=Learnt(error=0.1)).prefill_id == ""
    assert choose(*fleet, learnt=Learnt(error=0.5)).prefill_id == "p"


def test_a_guessed_rate_does_not_outweigh_a_measured_transfer() -> None:
    fleet = [prefill("p", links={"d": Link(1e9, 30.0)}), decode("d", prefill_tokens_per_s=0.0)]
    assert choose(*fleet).prefill_id == "p"
    fleet[1] = replace(fleet[1], matched_tokens=144)
    assert choose(*fleet).reason == "cached_on_decode"


def test_running_streams_are_worth_their_disturbance() -> None:
    """128 tokens at 1 ms for each of the streams, less the step of 10 + 1 ms each that they would have taken anyway."""
    p = prefill("p", links={"d": Link(1e6, 5.0)}, queued_prefill_tokens=40)
    assert choose(p, decode("d")).prefill_id == ""
    assert choose(p, decode("d", num_running=2)).prefill_id == "p"


def test_a_short_suffix_that_fits_into_a_step_disturbs_nobody() -> None:
    busy = decode("d", num_running=20, matched_tokens=144)
    assert choose(prefill("p", matched_tokens=144, links={"d": Link(1e9, 10.0)}), busy).prefill_id == ""


def test_decode_leaves_the_prompt_to_prefill_when_it_is_full_or_busy() -> None:
    assert choose(prefill("p"), decode("d", matched_tokens=144, available_blocks=3)).prefill_id == "p"
    assert choose(prefill("p"), decode("d", matched_tokens=144, queued_prefill_tokens=500)).prefill_id == "p"


def test_the_configuration_and_a_canary_decide_before_the_estimate() -> None:
    fleet = (prefill("p"), decode("d", matched_tokens=144))
    assert choose(*fleet, remote="always").prefill_id == "p"
    assert choose(*fleet, remote="prefer").prefill_id == "p"
    assert choose(prefill("p"), decode("d"), remote="never").reason == "configured"
    canary = PromptView(num_tokens=160, num_blocks=10, block_bytes=1, force_remote=True)
    assert choose(*fleet, prompt=canary).prefill_id == "p"


@pytest.mark.parametrize("remote", ["auto", "prefer", "never"])
def test_without_prefill_workers_decode_does_both(remote: str) -> None:
    assert choose(decode("d"), remote=remote).reason == "no_prefill_worker"


def test_where_all_do_both_the_sum_decides_and_of_equals_the_smaller_batch() -> None:
    busy, idle = decode("busy", num_running=20, matched_tokens=32), decode("idle")
    for tokens, chosen in ((1.0, "busy"), (100.0, "idle")):
        placed = choose(busy, idle, learnt=Learnt(tokens))
        assert placed.decode_id == chosen
        assert placed.considered is not None
        candidates = weigh(placed.considered)
        assert chosen == min(candidates, key=lambda each: each.cost_ms).decode
    flat = {"decode_ms_per_sequence": 0.0}
    assert choose(decode("busy", num_running=2, **flat), decode("idle", num_running=1, **flat)).decode_id == "idle"


# --- nowhere, and not there -------------------------------------------------------------------------------------------


def test_nowhere_to_go_is_said_with_a_time_to_retry() -> None:
    with pytest.raises(NoCapacity, match="no decode worker") as caught:
        choose(prefill("p"))
    assert caught.value.retry_after_s
    with pytest.raises(NoCapacity, match="no prefill worker"):
        choose(decode("d"), remote="always")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_failed_pair_is_passed_over_for_the_next_best(policy: str) -> None:
    fleet = [prefill("p1"), prefill("p2", queued_prefill_tokens=50), decode("d1"), decode("d2", num_running=3)]
    for turn in range(16):
        avoid = Avoid(pairs=frozenset({("p1", "d1"), ("p2", "d2")}))
        placed = place(PROMPT, fleet, "prefer", turn, avoid, policy=policy_named(policy))
        assert pair_of(placed) in {("p1", "d2"), ("p2", "d1")} or placed.reason == "transfer_suspect"
        avoid = Avoid(frozenset({"p1", "d2"}))
        assert pair_of(place(PROMPT, fleet, "prefer", turn, avoid, policy=policy_named(policy))) == ("p2", "d1")


def test_where_every_pair_failed_decode_computes_the_prompt_itself() -> None:
    fleet = [prefill("p"), decode("d")]
    avoid = Avoid(pairs=frozenset({("p", "d")}))
    placed = place(PROMPT, fleet, "auto", 0, avoid)
    assert (*pair_of(placed), placed.reason) == ("", "d", "transfer_suspect")
    for mode, also in (("always", frozenset()), ("auto", frozenset({("", "d")}))):
        with pytest.raises(NoCapacity, match="every pair"):
            place(PROMPT, fleet, mode, 0, avoid | Avoid(pairs=also))


# --- over many requests -----------------------------------------------------------------------------------------------


class Books:
    """A fleet on which each placement is booked, as the router does; nothing ever finishes unless told."""

    def __init__(self, *workers: WorkerView) -> None:
        self.workers = {view.worker_id: view for view in workers}
        self.matches: dict[str, int] = {}
        self.turn = 0

    def place(self, **more: object) -> Placement:
        self.turn += 1
        fleet, matches = list(self.workers.values()), dict(self.matches)
        placed = place(PROMPT, fleet, "prefer", self.turn, matches=matches, **more)  # type: ignore[arg-type]
        p, d = self.workers[placed.prefill_id], self.workers[placed.decode_id]
        waits = p.queued_prefill_tokens + PROMPT.num_tokens - placed.predicted_cached
        self.workers[p.worker_id] = replace(p, queued_prefill_tokens=waits)
        self.workers[d.worker_id] = replace(d, num_running=d.num_running + 1)
        return placed


def fleet_of(num: int) -> list[WorkerView]:
    return [*(prefill(f"p{i}") for i in range(num)), *(decode(f"d{i}") for i in range(num))]


def test_a_burst_of_cold_prompts_spreads_evenly() -> None:
    books = Books(*fleet_of(4))
    chosen = [pair_of(books.place()) for _ in range(64)]
    for role in (0, 1):
        assert set(Counter(pair[role] for pair in chosen).values()) == {16}


def test_cold_prompts_one_by_one_spread_too() -> None:
    """Nothing waits anywhere, so only the ties' dice decide."""
    fleet = fleet_of(4)
    counts = Counter(choose(*fleet, turn=turn, seed=3, remote="prefer").prefill_id for turn in range(400))
    assert len(counts) == 4
    assert min(counts.values()) > 60


def test_a_hot_prefix_is_replicated_instead_of_overloading_its_worker() -> None:
    """Every prompt shares 144 tokens that only p0 holds: it gets them until its queue costs more than that."""
    books = Books(*fleet_of(4))
    books.matches = {"p0": 144}
    chosen = []
    for _ in range(60):
        placed = books.place()
        chosen.append(placed.prefill_id)
        books.matches[placed.prefill_id] = 144
    counts = Counter(chosen)
    assert chosen[:5] == ["p0"] * 5  # 16 tokens each there; 160 elsewhere
    assert len(counts) == 4
    waiting = [books.workers[name].queued_prefill_tokens for name in ("p0", "p1", "p2", "p3")]
    assert max(waiting) - min(waiting) <= 160


def test_following_the_longest_match_alone_collapses() -> None:
    """Why it is a baseline and not the policy: all requests share one block, one worker takes everything."""
    books = Books(*fleet_of(4))
    books.matches = {"p2": 16}
    assert {books.place(policy=policy_named("prefix-only")).prefill_id for _ in range(40)} == {"p2"}
    books = Books(*fleet_of(4))
    books.matches = {"p2": 16}
    assert len({books.place().prefill_id for _ in range(40)}) == 4


def test_a_restarted_worker_gets_its_share_and_no_flood() -> None:
    """It has an empty cache, no queue and no rate of its own."""
    books = Books(*fleet_of(4))
    books.workers["p3"] = prefill("p3", prefill_tokens_per_s=0.0)
    books.matches = {"p0": 80, "p1": 80, "p2": 80}
    counts = Counter(books.place().prefill_id for _ in range(80))
    assert 0 < counts["p3"] <= 80 / 4


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_arguments_give_the_same_answer_and_another_seed_spreads_otherwise(policy: str) -> None:
    fleet = fleet_of(8)

    def run(seed: int) -> list[tuple[str, str]]:
        chosen = policy_named(policy)
        return [pair_of(choose(*fleet, turn=t, seed=seed, policy=chosen, remote="prefer")) for t in range(32)]

    assert run(1) == run(1)
    assert policy == "round-robin" or run(1) != run(2)


def test_who_does_not_wait_for_a_prefill_worker_is_computed_by_decode_where_it_may_be() -> None:
    """The router's queue has found that sooner; only it knows how long the queue is."""
    fleet = [prefill("p"), decode("busy", num_running=5), decode("idle")]
    prompt = replace(PROMPT, alone=True)
    placed = choose(*fleet, prompt=prompt)
    assert (pair_of(placed), placed.reason) == (("", "idle"), "prefill_busy")
    assert pair_of(choose(*fleet, prompt=prompt, remote="always"))[0] == "p"
    assert choose(decode("d"), prompt=prompt).reason == "no_prefill_worker"


# --- properties -------------------------------------------------------------------------------------------------------

LINKS = st.builds(Link, st.sampled_from([1e5, 1e6, 1e8]), st.sampled_from([0.0, 2.0, 30.0]))


@st.composite
def fleets(draw: st.DrawFn) -> list[WorkerView]:
    decodes = [f"d{i}" for i in range(draw(st.integers(1, 4)))]
    numbers = st.integers(0, 300)
    made = [
        prefill(
            f"p{i}",
            matched_tokens=draw(st.sampled_from([0, 16, 144])),
            queued_prefill_tokens=draw(numbers),
            prefill_tokens_per_s=draw(st.sampled_from([0.0, 300.0, 1_000.0])),
            chunk_tokens=draw(st.sampled_from([0, 32])),
            links={name: draw(LINKS) for name in decodes if draw(st.booleans())},
        )
        for i in range(draw(st.integers(0, 4)))
    ]
    return made + [
        decode(
            name,
            matched_tokens=draw(st.sampled_from([0, 16, 144])),
            queued_prefill_tokens=draw(numbers),
            num_running=draw(st.integers(0, 20)),
            available_blocks=draw(st.sampled_from([3, 100])),
            prefill_tokens_per_s=draw(st.sampled_from([0.0, 300.0, 1_000.0])),
            decode_base_ms=draw(st.sampled_from([0.0, 10.0])),
        )
        for name in decodes
    ]


@given(fleets(), st.integers(0, 50), st.sampled_from(["auto", "prefer", "never"]), st.sampled_from(list(POLICIES)))
def test_whatever_the_fleet_the_answer_is_one_of_its_workers(
    fleet: list[WorkerView], turn: int, remote: str, policy: str
) -> None:
    placed = choose(*fleet, turn=turn, remote=remote, policy=policy_named(policy))
    views = {view.worker_id: view for view in fleet}
    computing = views[placed.prefill_id or placed.decode_id]
    assert placed.reason in REASONS
    assert (placed.reason == "remote") == bool(placed.prefill_id)
    assert placed.predicted_cached == computing.matched_tokens
    assert placed.expected_ms > 0
    assert placed.exposed_ms >= 0


def test_a_fleet_that_has_measured_nothing_spreads_sequences() -> None:
    """Though one link looks better than the other."""
    blank = {"decode_base_ms": 0.0, "decode_ms_per_sequence": 0.0, "prefill_tokens_per_s": 0.0}
    links = {"d1": Link(5e9, 0.1), "d2": Link(4e9, 0.3)}
    running = {"d1": 0, "d2": 0}
    for turn in range(6):
        fleet = [prefill("p", links=links, prefill_tokens_per_s=0.0)]
        fleet += [decode(name, num_running=count, **blank) for name, count in running.items()]
        running[place(PROMPT, fleet, "prefer", turn).decode_id] += 1
    assert running == {"d1": 3, "d2": 3}
