"""Generators: seeded, of the shape they say, and no prompt repeats another beyond it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from loadgen.traces.mooncake import TokenBlocks, TraceRequest
from loadgen.workloads.lengths import parse_lengths
from loadgen.workloads.spec import make_workload
from loadgen.workloads.words import WORDS
from loadgen.workloads.workload import Workload, clipped, infinite_cache_hits

SPECS = {
    "independent": "independent:input=20..400,output=5",
    "prefix-share": "prefix-share:share=0.5,groups=3,input=100..300",
    "shared-system": "shared-system:system=200..300,systems=4,user=16..50",
    "sessions": "sessions:system=64,turns=2..5,user=16..60,output=16..40,active=6",
    "agents": "agents:tools=256,task=20..40,steps=2..5,tool_output=60~0.7,output=16..20,active=4",
    "documents": "documents:document=300..600,questions=2..4,question=16..30,active=3",
}
every = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def prompts(workload: Workload, vocabulary_size: int = 32_000) -> list[tuple[int, ...]]:
    blocks = TokenBlocks(vocabulary_size)
    return [tuple(blocks.prompt(each, number)) for number, each in enumerate(workload.requests)]


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@every
def test_a_seed_gives_the_same_requests_in_every_process(spec: str) -> None:
    one, same, other = (make_workload(spec, 40, seed).requests for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(one) == 40


@every
@pytest.mark.parametrize("vocabulary_size", [32_000, len(WORDS)], ids=["ids", "words"])
def test_no_prompt_repeats_another_by_accident(spec: str, vocabulary_size: int) -> None:
    """What two prompts have in common is what their ids say, and never all of both."""
    workload = make_workload(spec, 60, seed=3)
    expanded = prompts(workload, vocabulary_size)
    assert len(set(expanded)) == len(expanded)
    pairs = itertools.combinations(zip(workload.requests, expanded, strict=True), 2)
    for (one, one_prompt), (other, other_prompt) in itertools.islice(pairs, 0, None, 7):
        shared_blocks = common(one.hash_ids, other.hash_ids)
        shared = min(shared_blocks * one.block_tokens, len(one_prompt), len(other_prompt))
        assert shared <= common(one_prompt, other_prompt) <= shared + 3  # random tokens may agree for one or two


@every
def test_another_salt_shares_nothing(spec: str) -> None:
    requests = make_workload(spec, 5, seed=3).requests
    for request in requests:
        ours, theirs = (TokenBlocks(32_000, salt).prompt(request) for salt in (1, 2))
        assert common(tuple(ours), tuple(theirs)) < 4


def test_shares_are_what_was_asked_for() -> None:
    requests = make_workload("prefix-share:share=0.75,input=400", 20, seed=0).requests
    assert {common(requests[0].hash_ids, each.hash_ids) for each in requests[1:]} == {300 // 16}
    assert infinite_cache_hits(requests)[1:] == [288] * 19


def test_popular_system_prompts_are_more_popular() -> None:
    requests = make_workload("shared-system:systems=4,popularity=1.5", 2_000, seed=0).requests
    _, counts = np.unique([each.hash_ids[0] for each in requests], return_counts=True)
    weights = np.arange(1, 5) ** -1.5
    assert sorted(counts / 2_000, reverse=True) == pytest.approx(weights / weights.sum(), abs=0.04)


def test_turns_of_a_session_grow_in_order() -> None:
    requests = make_workload(SPECS["sessions"], 100, seed=5).requests
    sessions: dict[int, list[TraceRequest]] = {}
    for request in requests:
        sessions.setdefault(request.hash_ids[4], []).append(request)  # behind the system prompt of 64 tokens
    assert len({each.hash_ids[:4] for each in requests}) == 1
    assert max(map(len, sessions.values())) > 1
    for turns in sessions.values():
        for before, after in itertools.pairwise(turns):
            assert after.input_length >= before.input_length + before.output_length + 16
            assert after.hash_ids[: len(before.hash_ids)] == before.hash_ids


def test_questions_about_a_document_share_only_the_document() -> None:
    requests = make_workload("documents:document=320,questions=3,question=16..40,active=2", 30, seed=1).requests
    by_document: dict[int, list[TraceRequest]] = {}
    for request in requests:
        by_document.setdefault(request.hash_ids[0], []).append(request)
    for questions in by_document.values():
        for one, other in itertools.pairwise(questions):
            assert common(one.hash_ids, other.hash_ids) == 20


def test_a_mixture_has_its_weights_and_labels_and_shares_no_ids() -> None:
    mixture = make_workload("3*independent:input=64+1*sessions:user=20", 2_000, seed=0)
    assert mixture.labels.count("independent") / 2_000 == pytest.approx(0.75, abs=0.04)
    ids = {
        label: {
            i for each, its in zip(mixture.requests, mixture.labels, strict=True) if its == label for i in each.hash_ids
        }
        for label in set(mixture.labels)
    }
    assert not ids["independent"] & ids["sessions"]
    assert set(make_workload("independent+independent:input=8", 50, 0).labels) == {"independent 1", "independent 2"}


def test_clipping_cuts_the_end() -> None:
    whole = make_workload(SPECS["sessions"], 20, seed=0)
    cut = clipped(whole, max_input=100, max_output=8)
    for before, after in zip(whole.requests, cut.requests, strict=True):
        assert after.input_length == min(100, before.input_length)
        assert after.output_length <= 8
        assert after.hash_ids == before.hash_ids[: len(after.hash_ids)]


def test_hits_need_the_whole_prefix() -> None:
    same, other = TraceRequest(0, 40, 1, (1, 2, 3), 16), TraceRequest(0, 48, 1, (9, 2, 3), 16)
    assert infinite_cache_hits([same, same, other, same]) == [0, 32, 0, 32]


@pytest.mark.parametrize(("text", "low", "high"), [("7", 7, 7), ("3..5", 3, 5), ("4|9", 4, 9), ("100~0.5", 5, 2_000)])
def test_lengths(text: str, low: int, high: int) -> None:
    rng = np.random.default_rng(0)
    drawn = [parse_lengths(text).draw(rng) for _ in range(500)]
    assert low <= min(drawn) <= max(drawn) <= high
    if "~" in text:
        assert np.median(drawn) == pytest.approx(100, rel=0.15)
    else:
        assert {low, high} <= set(drawn)


@pytest.mark.parametrize("text", ["", "x", "5..3", "0", "0|4", "..5", "~1", "0~1", "5~-1", "1..2..3"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="lengths"):
        parse_lengths(text)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nothing", "no workload 'nothing'"),
        ("sessions:turn=3", "no parameter"),
        ("sessions:turns", "no parameter"),
        ("sessions:active=0", "active"),
        ("prefix-share:share=2", "share"),
        ("prefix-share:share=much", "share"),
        ("0*sessions", "weight"),
    ],
)
def test_specs_that_are_none(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_workload(spec, 3, seed=0)


def test_a_generator_needs_an_end() -> None:
    with pytest.raises(ValueError, match="how many requests"):
        make_workload("sessions", None, seed=0)
