from __future__ import annotations

import msgspec
import pytest
from placement_views import choose, decode, prefill

from diptych.errors import LegFailed
from diptych.messages import LegStats, SamplingParams
from router.explain import ExplainRing, Explanation
from router.placement import Link, Placement, WorkerView
from router.placement.named import policy_named
from router.requests import Report, TokenRequest

FLEET: list[WorkerView] = [
    prefill("p0", matched_tokens=144, queued_prefill_tokens=30, links={"d0": Link(1e6, 10.0)}),
    prefill("p1", queued_prefill_tokens=20),
    decode("d0", num_running=2),
]


def request(request_id: str, client_id: str = "") -> TokenRequest:
    return TokenRequest(request_id, [1] * 160, SamplingParams(max_tokens=4, seed=1), client_id=client_id)


def ring_of(size: int = 8, policy: str = "min-ttft") -> ExplainRing:
    return ExplainRing(size, policy, "auto", clock=lambda: 1_000.0)


def explained(ring: ExplainRing, request_id: str) -> Explanation:
    explanation = ring.explain(request_id)
    assert explanation is not None
    return explanation


def test_shows_every_candidate_with_each_term_and_what_the_best_alternative_would_have_cost() -> None:
    ring = ring_of()
    ring.placed(request("r", "mine"), choose(*FLEET), 0, 1e-4)
    (decision,) = explained(ring, "r").decisions
    chosen = decision.chosen
    assert (chosen.prefill, chosen.decode, chosen.cached_tokens) == ("p0", "d0", 144)
    assert (chosen.queue_ms, chosen.prefill_ms, chosen.ttft_ms) == (30.0, 16.0, 46.0)
    assert chosen.exposed_transfer_ms == pytest.approx(10.0 + 144.0)  # 160 ms to move, 16 of them while it computes
    assert chosen.decode_ms == 13.0
    assert chosen.cost_ms == pytest.approx(46.0 + 154.0 + 13.0)
    assert {(each.prefill, each.decode) for each in decision.candidates} == {("p0", "d0"), ("p1", "d0"), (None, "d0")}
    alone = next(each for each in decision.candidates if each.prefill is None)
    assert alone.disturbance_ms == 2 * (160.0 - 13.0)
    other = decision.best_alternative
    assert other is not None
    assert decision.alternative_costs_more_ms == pytest.approx(other.cost_ms - chosen.cost_ms)
    assert decision.alternative_costs_more_ms > 0
    assert (decision.reason, decision.matched_tokens, decision.took_us) == ("remote", 144, pytest.approx(100.0))
    assert explained(ring, "mine").request_id == "r"
    assert msgspec.json.decode(msgspec.json.encode(explained(ring, "r")), type=Explanation) == explained(ring, "r")


def test_says_of_another_policy_by_how_much_it_was_estimated_to_be_worse() -> None:
    fleet = [prefill("near", matched_tokens=144, queued_prefill_tokens=900), prefill("far"), decode("d0")]
    ring = ring_of(policy="prefix-only")
    ring.placed(request("r"), choose(*fleet, policy=policy_named("prefix-only"), remote="prefer"), 0, 0.0)
    (decision,) = explained(ring, "r").decisions
    assert decision.chosen.prefill == "near"
    assert decision.alternative_costs_more_ms is not None
    assert decision.alternative_costs_more_ms < 0


def test_completes_with_what_was_true() -> None:
    ring, placement = ring_of(), choose(*FLEET)
    asked, report = request("r"), Report()
    ring.placed(asked, placement, 0, 0.0)
    assert explained(ring, "r").outcome is None
    report.placed(placement, 1, 5.0)
    report.marks["first_token"] = 5.25
    report.prefill = LegStats(prompt_computed=128, prompt_cached=32, queue_ms=3.0, compute_ms=200.0)
    report.decode = LegStats(prompt_transferred=160, exposed_ms=7.0)
    ring.ended(asked, report, None)
    outcome = explained(ring, "r").outcome
    assert outcome is not None
    assert (outcome.outcome, outcome.retries) == ("ok", 1)
    assert (outcome.predicted_cached_tokens, outcome.cached_tokens) == (144, 32)
    assert (outcome.expected_ttft_ms, outcome.ttft_ms) == (46.0, 250.0)
    assert outcome.expected_exposed_transfer_ms == pytest.approx(154.0)
    assert outcome.exposed_transfer_ms == 7.0


def test_a_failed_attempt_is_remembered_beside_the_next() -> None:
    ring, asked = ring_of(), request("r")
    ring.placed(asked, choose(*FLEET), 0, 0.0)
    ring.placed(asked, choose(*FLEET[1:]), 1, 0.0)
    ring.ended(asked, Report(), LegFailed("gone"))
    explanation = explained(ring, "r")
    assert [each.attempt for each in explanation.decisions] == [0, 1]
    assert explanation.outcome is not None
    assert explanation.outcome.outcome == "leg_failed"
    assert explanation.outcome.cached_tokens is None


def test_remembers_only_the_latest() -> None:
    ring = ring_of(size=3)
    for i in range(10):
        ring.placed(request(f"r{i}", "same"), choose(*FLEET), 0, 0.0)
    assert len(ring) == 3
    assert ring.latest(2) == ["r9", "r8"]
    assert ring.explain("r6") is None
    assert explained(ring, "same").request_id == "r9"
    ring.ended(request("r0"), Report(), None)  # long forgotten
    assert len(ring) == 3


def test_none_is_remembered_where_the_ring_is_off() -> None:
    ring = ring_of(size=0)
    ring.placed(request("r"), choose(*FLEET), 0, 0.0)
    assert (len(ring), ring.explain("r")) == (0, None)


def test_a_request_that_found_no_worker_was_never_placed() -> None:
    ring = ring_of()
    ring.ended(request("r"), Report(), LegFailed("nobody"))
    assert ring.explain("r") is None


def test_of_a_large_fleet_the_best_few_are_kept_with_the_chosen_one() -> None:
    fleet = [*(prefill(f"p{i}", queued_prefill_tokens=i) for i in range(100)), *(decode(f"d{i}") for i in range(100))]
    placement: Placement = choose(*fleet)
    assert placement.considered is not None
    assert len(placement.considered.prefills) == len(placement.considered.decodes) == 8
    assert len(placement.considered.scene.matches) == 16
    ring = ring_of()
    ring.placed(request("r"), placement, 0, 0.0)
    (decision,) = explained(ring, "r").decisions
    assert len(decision.candidates) == 16
    assert (decision.chosen.prefill or "", decision.chosen.decode) == (placement.prefill_id, placement.decode_id)
