"""Baselines are what their names say, in fleets with prefill workers and in fleets whose workers do both."""

from __future__ import annotations

from collections import Counter

import pytest
from placement_views import choose, decode, pair_of, prefill

from router.placement.named import policy_named

APART = [prefill("p1"), prefill("p2", queued_prefill_tokens=9_000), decode("d1"), decode("d2", num_running=50)]
COLOCATED = [decode("d1"), decode("d2", num_running=50, queued_prefill_tokens=9_000), decode("d3", num_running=7)]


@pytest.mark.parametrize("fleet", [APART, COLOCATED])
def test_round_robin_takes_turns_whoever_is_busy(fleet: list) -> None:  # type: ignore[type-arg]
    policy = policy_named("round-robin")
    decodes = [view.worker_id for view in fleet if view.role == "decode"]
    chosen = [pair_of(choose(*fleet, policy=policy, turn=turn))[1] for turn in range(2 * len(decodes))]
    assert chosen == 2 * decodes


@pytest.mark.parametrize("fleet", [APART, COLOCATED])
def test_random_is_blind(fleet: list) -> None:  # type: ignore[type-arg]
    policy = policy_named("random")
    decodes = [view.worker_id for view in fleet if view.role == "decode"]
    drawn = Counter(pair_of(choose(*fleet, policy=policy, turn=turn, seed=7))[1] for turn in range(3_000))
    for name in decodes:  # within five standard deviations
        assert drawn[name] == pytest.approx(3_000 / len(decodes), abs=5 * (3_000 / len(decodes)) ** 0.5)
