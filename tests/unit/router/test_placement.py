"""Placement is a pure function: these tests give it a fleet and read its choice."""

import pytest

from diptych.errors import NoCapacity
from diptych.messages import Role
from router.placement import Avoid, Placement, PromptView, WorkerView, place

PROMPT = PromptView(num_tokens=160, num_blocks=10, block_bytes=737_280)


def worker(name: str, role: Role, **changes: float) -> WorkerView:
    fields = {
        "matched_tokens": 0,
        "queued_prefill_tokens": 0,
        "num_running": 0,
        "available_blocks": 100,
        "prefill_tokens_per_s": 1000.0,
        "transfer_bytes_per_s": 2e9,
    }
    return WorkerView(worker_id=name, role=role, **{**fields, **changes})  # type: ignore[arg-type]


def prefill(name: str, **changes: float) -> WorkerView:
    return worker(name, Role.PREFILL, **changes)


def decode(name: str, **changes: float) -> WorkerView:
    return worker(name, Role.DECODE, **changes)


def choose(*workers: WorkerView, prompt: PromptView = PROMPT, remote: str = "auto", turn: int = 0) -> Placement:
    return place(prompt, workers, remote, turn)


def test_expects_the_time_the_uncached_tokens_and_the_queue_take() -> None:
    placement = choose(prefill("p", matched_tokens=60, queued_prefill_tokens=100), decode("d"))
    assert placement == Placement("p", "d", 200.0, 60, "remote")


def test_a_cached_prefix_outweighs_a_short_queue_but_not_a_long_one() -> None:
    cold = prefill("cold")
    for queue, chosen in ((50, "warm"), (400, "cold")):
        warm = prefill("warm", matched_tokens=144, queued_prefill_tokens=queue)
        assert choose(cold, warm, decode("d")).prefill_id == chosen


def test_a_slow_worker_is_chosen_last() -> None:
    assert choose(prefill("slow", prefill_tokens_per_s=100.0), prefill("fast"), decode("d")).prefill_id == "fast"


def test_a_worker_that_has_measured_nothing_counts_as_its_peers_mean() -> None:
    fresh = prefill("fresh", prefill_tokens_per_s=0.0)
    assert choose(prefill("busy", queued_prefill_tokens=10), fresh, decode("d")).prefill_id == "fresh"
    assert choose(prefill("idle", prefill_tokens_per_s=2000.0), fresh, decode("d"), turn=0).expected_ms == 80.0


def test_decode_goes_where_the_blocks_are_then_to_the_emptier_batch_then_to_the_shorter_transfer() -> None:
    full = decode("full", available_blocks=9, num_running=0)
    busy = decode("busy", num_running=5)
    idle = decode("idle", num_running=1)
    cached = decode("cached", num_running=1, matched_tokens=32)
    assert choose(prefill("p", matched_tokens=32), full, busy).decode_id == "busy"
    assert choose(prefill("p", matched_tokens=32), busy, idle).decode_id == "idle"
    assert choose(prefill("p", matched_tokens=32), idle, cached).decode_id == "cached"


def test_decode_computes_the_prompt_itself_when_its_own_cache_makes_that_sooner() -> None:
    placement = choose(prefill("p"), decode("d", matched_tokens=144))
    assert (placement.prefill_id, placement.decode_id, placement.reason) == ("", "d", "cached_on_decode")
    assert placement.predicted_cached == 144


def test_decode_leaves_the_prompt_to_prefill_when_it_is_full_or_busy() -> None:
    assert choose(prefill("p"), decode("d", matched_tokens=144, available_blocks=3)).prefill_id == "p"
    assert choose(prefill("p"), decode("d", matched_tokens=144, queued_prefill_tokens=500)).prefill_id == "p"


def test_the_configuration_and_a_canary_decide_before_the_estimate() -> None:
    fleet = (prefill("p"), decode("d", matched_tokens=144))
    assert choose(*fleet, remote="always").prefill_id == "p"
    assert choose(prefill("p"), decode("d"), remote="never").reason == "configured"
    canary = PromptView(num_tokens=160, num_blocks=10, block_bytes=1, force_remote=True)
    assert choose(*fleet, prompt=canary).prefill_id == "p"


def test_without_prefill_workers_decode_does_both() -> None:
    assert choose(decode("d")).reason == "no_prefill_worker"


def test_equal_workers_take_turns() -> None:
    fleet = (prefill("p0"), prefill("p1"), decode("d0"), decode("d1"))
    pairs = [(one.prefill_id, one.decode_id) for one in (choose(*fleet, turn=turn) for turn in range(4))]
    assert pairs == [("p0", "d0"), ("p1", "d1"), ("p0", "d0"), ("p1", "d1")]


def test_nowhere_to_go_is_said_with_a_time_to_retry() -> None:
    with pytest.raises(NoCapacity, match="no decode worker") as caught:
        choose(prefill("p"))
    assert caught.value.retry_after_s
    with pytest.raises(NoCapacity, match="no prefill worker"):
        choose(decode("d"), remote="always")


def test_a_failed_pair_is_passed_over_for_the_next_best() -> None:
    fleet = [prefill("p1"), prefill("p2", queued_prefill_tokens=50), decode("d1"), decode("d2", num_running=3)]
    assert pair_of(place(PROMPT, fleet, "auto", 0)) == ("p1", "d1")
    avoid = Avoid(pairs=frozenset({("p1", "d1")}))
    assert pair_of(place(PROMPT, fleet, "auto", 0, avoid)) == ("p1", "d2")
    avoid = Avoid(frozenset({"p1"}))
    assert pair_of(place(PROMPT, fleet, "auto", 0, avoid)) == ("p2", "d1")


def test_where_every_pair_failed_decode_computes_the_prompt_itself() -> None:
    fleet = [prefill("p"), decode("d")]
    avoid = Avoid(pairs=frozenset({("p", "d")}))
    placed = place(PROMPT, fleet, "auto", 0, avoid)
    assert (pair_of(placed), placed.reason) == (("", "d"), "transfer_suspect")
    for mode, also in (("always", frozenset()), ("auto", frozenset({("", "d")}))):
        with pytest.raises(NoCapacity, match="every pair"):
            place(PROMPT, fleet, mode, 0, avoid | Avoid(pairs=also))


def pair_of(placement: Placement) -> tuple[str, str]:
    return placement.prefill_id, placement.decode_id
