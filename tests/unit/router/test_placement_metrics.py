from __future__ import annotations

from math import inf

import pytest
from prometheus_client import CollectorRegistry

from diptych.errors import NoCapacity
from diptych.messages import Role
from router.placement import LOCAL_REASONS, Placement
from router.placement_metrics import HALF_LIFE_S, PlacementCollector, PlacementMetrics, Shares, jain


class Scraped:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = PlacementMetrics(self.registry, "tiny")
        self.workers = {Role.PREFILL: ["p0", "p1"], Role.DECODE: ["d0"]}
        self.tokens: float | None = 305.0
        self.now = 0.0
        self.registry.register(
            PlacementCollector(self.metrics, "tiny", self.workers.__getitem__, self.crossover, lambda: self.now)
        )

    def crossover(self) -> float:
        if self.tokens is None:
            raise NoCapacity("nobody")
        return self.tokens

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "tiny", **labels})


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def placed(prefill: str, reason: str = "remote", cached: int = 0) -> Placement:
    return Placement(prefill, "d0", 1.0, cached, reason)


def test_fallbacks_are_counted_by_reason_and_all_placements_timed(scraped: Scraped) -> None:
    scraped.metrics.placed(placed("p0"), 100, 0.0, 1e-4)
    scraped.metrics.placed(placed("", "prefill_busy"), 100, 0.0, 1e-4)
    assert scraped("diptych_placements_total") == 2
    assert scraped("diptych_fallbacks_total", reason="prefill_busy") == 1
    assert [scraped("diptych_fallbacks_total", reason=reason) for reason in LOCAL_REASONS].count(0.0) == 5
    assert scraped("diptych_placement_seconds_count") == 2
    assert scraped("diptych_placement_seconds_sum") == pytest.approx(2e-4)


def test_balance_is_jain_s_index_of_what_was_given_lately(scraped: Scraped) -> None:
    scraped.metrics.placed(placed("p0"), 100, 0.0, 0.0)
    assert scraped("diptych_load_balance", role="prefill") == 0.5
    scraped.metrics.placed(placed("p1", cached=50), 150, 0.0, 0.0)
    assert scraped("diptych_load_balance", role="prefill") == 1.0
    assert scraped("diptych_load_balance", role="decode") == 1.0
    scraped.metrics.placed(placed("p1"), 300, 0.0, 0.0)
    scraped.now = 5 * HALF_LIFE_S
    scraped.metrics.placed(placed("p0"), 100, scraped.now, 0.0)
    assert scraped("diptych_load_balance", role="prefill") == pytest.approx(0.62, abs=0.01)  # 103 against 12.5
    scraped.workers[Role.PREFILL] = ["p0"]
    assert scraped("diptych_load_balance", role="prefill") == 1.0
    scraped.workers[Role.PREFILL] = []
    assert scraped("diptych_load_balance", role="prefill") is None


@pytest.mark.parametrize("tokens", [305.0, inf, None])
def test_the_crossover_is_shown_as_long_as_there_is_one(scraped: Scraped, tokens: float | None) -> None:
    scraped.tokens = tokens
    assert scraped("diptych_crossover_tokens") == tokens


def test_jain() -> None:
    assert jain([3, 3, 3]) == 1.0
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == 1.0


def test_shares_are_halved_every_minute_and_forgotten_with_their_worker() -> None:
    shares = Shares()
    shares.add("a", 8.0, 0.0)
    shares.add("a", 1.0, HALF_LIFE_S)
    assert shares.of("a", HALF_LIFE_S) == pytest.approx(5.0)
    assert shares.of("a", 3 * HALF_LIFE_S) == pytest.approx(1.25)
    shares.keep(["b"])
    assert shares.of("a", HALF_LIFE_S) == 0.0
