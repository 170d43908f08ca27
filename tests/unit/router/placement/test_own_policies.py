"""Policies as users write them: by the documented example, by changing the default, and with mistakes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from placement_views import choose, decode, prefill

from diptych.errors import NoCapacity
from router.placement import WorkerView
from router.placement.min_ttft import MinTtft
from router.placement.scene import Scene

ROUTING = Path(__file__).parents[4] / "docs/routing.md"
APART = [prefill("p1"), prefill("p2"), decode("d1"), decode("d2")]
COLOCATED = [decode(f"d{i}") for i in range(5)]


@pytest.mark.parametrize("fleet", [APART, COLOCATED], ids=["apart", "colocated"])
@pytest.mark.parametrize("remote", ["auto", "prefer", "never"])
def test_the_documented_one_works_as_it_is_printed(fleet: list[WorkerView], remote: str) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", ROUTING.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    warm = {view.worker_id: 96 for view in fleet if view.worker_id in ("p1", "d1")}
    policy = namespace["WarmestOfTwo"]()
    placed = [choose(*fleet, policy=policy, remote=remote, turn=turn, matches=warm) for turn in range(40)]
    computing = {each.prefill_id or each.decode_id for each in placed}
    assert computing & set(warm)
    assert (computing <= set(warm)) is (fleet is APART)  # of five, the warm one is not always among the two


class Sticky(MinTtft):
    """The default but for its costs."""

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:  # type: ignore[override]
        return 0.0 if worker.worker_id == "d3" else 1e9

    def decode_cost(self, scene: Scene, worker: WorkerView) -> float:  # type: ignore[override]
        return 0.0


def test_costs_that_are_overridden_count() -> None:
    assert {choose(*COLOCATED, policy=Sticky(), turn=turn).decode_id for turn in range(8)} == {"d3"}


class Nobody(MinTtft):
    def filter(self, scene: Scene, workers: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return []


class Words(Sticky):
    def decode_cost(self, scene: Scene, worker: WorkerView) -> Any:
        return "much"


@pytest.mark.parametrize("fleet", [APART, COLOCATED], ids=["apart", "colocated"])
def test_a_filter_that_leaves_nobody_is_named(fleet: list[WorkerView]) -> None:
    with pytest.raises(NoCapacity, match="Nobody considers no decode worker"):
        choose(*fleet, policy=Nobody())


def test_a_cost_that_is_no_number_is_refused_where_it_comes_from() -> None:
    with pytest.raises(TypeError, match="str"):
        choose(*COLOCATED, policy=Words())
