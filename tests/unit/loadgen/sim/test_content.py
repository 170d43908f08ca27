"""With KV content: what a simulated cluster says is what each request would get alone, and wrong KV shows."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_cases import requests_with_tokens, small_config

from diptych.engine.sim.runner import MIN_CELL_BYTES, Chain
from diptych.messages import SamplingParams
from loadgen.sim.assembly import MODEL, VOCABULARY
from loadgen.sim.cluster import Cluster, simulate
from loadgen.sim.handover import Handover
from loadgen.sim.requests import Record
from loadgen.sim.workload import OpenLoop


def expected(record: Record) -> list[int]:
    request = record.request
    sampling = SamplingParams(max_tokens=request.output_length, seed=request.number)
    assert request.prompt is not None
    return Chain(MODEL, MIN_CELL_BYTES, VOCABULARY).reference(request.prompt, sampling)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 12)), min_size=2, max_size=10),
    fleet=st.sampled_from(["2", "1P+1D", "2P+2D"]),
    num_blocks=st.integers(20, 40),
    seed=st.integers(0, 99),
)
def test_everybody_gets_what_they_would_get_alone(
    lengths: list[tuple[int, int]], fleet: str, num_blocks: int, seed: int
) -> None:
    config = small_config(fleet, content=True, num_blocks=num_blocks)
    cluster = simulate(config, OpenLoop(requests_with_tokens(lengths, seed=seed)))
    for record in cluster.records:
        assert record.output == expected(record)


def test_prefixes_were_shared_and_kv_was_moved_meanwhile() -> None:
    config = small_config("1P+1D", content=True, num_blocks=60)
    cluster = simulate(config, OpenLoop(requests_with_tokens([(50, 6)] * 12, seed=3)))
    assert sum(record.cached for record in cluster.records) > 50
    assert cluster.wires.num_bytes > 0
    assert all(record.output == expected(record) for record in cluster.records)


@pytest.mark.parametrize("damage", ["zero", "swap", "stale"])
def test_wrong_kv_at_decode_changes_what_is_said(damage: str) -> None:
    """A fault put into decode's memory just as the KV is accepted."""
    receive = Handover._receive

    def receive_then_damage(self: Handover, delivery: object) -> None:
        receive(self, delivery)  # type: ignore[arg-type]
        runner = self._decode.runner
        assert runner is not None
        first, second = self._slots[0].block, self._slots[1].block
        if damage == "zero":
            runner.pool[first] = 0
        elif damage == "swap":
            runner.pool[[first, second]] = runner.pool[[second, first]]
        else:
            runner.pool[first] = runner.pool[second]

    with patch.object(Handover, "_receive", receive_then_damage):
        cluster = simulate(small_config("1P+1D", content=True), OpenLoop(requests_with_tokens([(20, 8)])))
    (record,) = cluster.records
    assert record.output[0] == expected(record)[0]  # of prefill
    assert record.output[1:] != expected(record)[1:]


def test_content_and_names_alone_take_the_same_time() -> None:
    """The same prompts as hash ids are placed, cached and timed alike."""
    requests = requests_with_tokens([(40, 10)] * 10, seed=5)
    with_content = simulate(small_config("2", content=True), OpenLoop(requests))
    without = simulate(small_config("2"), OpenLoop(requests))
    assert times(with_content) == times(without)
    assert with_content.loop.digest == without.loop.digest


def times(cluster: Cluster) -> list[tuple[int, int, int]]:
    return [(each.first_token_ns, each.last_token_ns, each.cached) for each in cluster.records]
