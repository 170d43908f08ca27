from __future__ import annotations

from math import inf

from placement_views import decode, prefill

from router.placement import NOTHING, Learnt, Link, PromptView, WorkerView, place
from router.placement.crossover import crossover_tokens
from router.placement.min_ttft import MinTtft

LEARNT = Learnt(1.0, error=0.1)


def crossover(*workers: WorkerView, max_tokens: int = 4_096) -> float:
    return crossover_tokens(
        workers, MinTtft(), LEARNT, NOTHING, max_tokens=max_tokens, block_size=16, block_bytes=16_000
    )


def test_it_is_where_the_latency_is_lost_in_the_doubt() -> None:
    """30 ms of latency against a tenth of 1 ms a token: 300 tokens, a few more for the transfer itself."""
    fleet = prefill("p", links={"d": Link(1e9, 30.0)}), decode("d")
    found = crossover(*fleet)
    assert 300 <= found <= 310
    for num_tokens, goes in ((int(found) - 1, False), (int(found), True)):
        placed = place(PromptView(num_tokens, -(-num_tokens // 16), 16_000), fleet, "auto", 0, learnt=LEARNT)
        assert bool(placed.prefill_id) is goes


def test_streams_on_decode_bring_it_down_and_a_slow_link_or_queue_brings_it_up() -> None:
    link = {"d": Link(1e9, 30.0)}
    idle = crossover(prefill("p", links=link), decode("d"))
    assert crossover(prefill("p", links=link), decode("d", num_running=4)) < idle
    assert crossover(prefill("p", links=link, queued_prefill_tokens=50), decode("d")) > idle
    roomy = decode("d", available_blocks=1_000)
    assert crossover(prefill("p", links={"d": Link(1e6, 1.0)}), roomy) == inf  # moving it costs as much as computing


def test_without_a_prefill_worker_it_is_never() -> None:
    assert crossover(decode("d")) == inf
