"""Many workers at once cost what each of them costs, and what a roster remembers changes no answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_views import PROMPT, choose, decode, prefill, worker

from diptych.messages import Role
from router.placement import NOTHING, Learnt, PromptView, WorkerView
from router.placement.baselines import LeastLoad
from router.placement.bulk import decodes_ms, first_tokens_ms
from router.placement.dice import Dice
from router.placement.min_ttft import MinTtft
from router.placement.rates import Rates
from router.placement.scene import Local, Scene
from router.placement.workers import Roster, Workers

RATES = st.sampled_from([0.0, 280.0, 1_000.0, 1_100.0, 9_000.0])
STEPS = st.sampled_from([0.0, 0.5, 0.6, 40.0])


@st.composite
def views(draw: st.DrawFn, name: str) -> WorkerView:
    return worker(
        name,
        Role.PREFILL if name.startswith("p") else Role.DECODE,
        queued_prefill_tokens=draw(st.integers(0, 300)),
        num_running=draw(st.integers(0, 20)),
        available_blocks=draw(st.integers(0, 30)),
        prefill_tokens_per_s=draw(RATES),
        decode_base_ms=draw(STEPS),
        decode_ms_per_sequence=draw(STEPS),
    )


@st.composite
def fleets(draw: st.DrawFn) -> list[WorkerView]:
    names = [f"p{i}" for i in range(draw(st.integers(0, 6)))] + [f"d{i}" for i in range(draw(st.integers(1, 6)))]
    return [draw(views(name)) for name in draw(st.permutations(names))]


@st.composite
def matches_of(draw: st.DrawFn, fleet: list[WorkerView]) -> dict[str, int]:
    """Up to more than the prompt has, which the index may believe of a longer one."""
    return {view.worker_id: draw(st.integers(1, 200)) for view in fleet if draw(st.booleans())}


def scene_of(fleet: list[WorkerView], matches: Mapping[str, int], learnt: Learnt, roster: Roster) -> Scene:
    prefills, decodes = roster.meet(fleet, matches)
    rates = Rates.mean_of(prefills, decodes)
    dice = Dice(0, 0)
    return Scene(PROMPT, matches, prefills, decodes, 0, dice, NOTHING, learnt, Local.IF_SOONER, rates)


@given(st.data(), fleets(), st.sampled_from([0.02, 0.1, 0.5]))
def test_many_at_once_cost_what_each_costs(data: st.DataObject, fleet: list[WorkerView], error: float) -> None:
    scene = scene_of(fleet, data.draw(matches_of(fleet)), Learnt(7.0, error), Roster())
    for workers in (scene.prefills, scene.decodes):
        assert isinstance(workers, Workers)
        assert first_tokens_ms(scene, workers).tolist() == [scene.first_token_ms(view) for view in workers]
        assert decodes_ms(scene, workers).tolist() == [scene.decode_ms(view) for view in workers]


@given(st.data(), fleets())
def test_a_roster_that_met_others_before_says_what_a_new_one_says(data: st.DataObject, fleet: list[WorkerView]) -> None:
    roster = Roster()
    for _ in range(4):
        match data.draw(st.sampled_from(["some report", "one leaves", "one changes its role", "nothing"])):
            case "some report":
                fleet = [data.draw(views(view.worker_id)) if data.draw(st.booleans()) else view for view in fleet]
            case "one leaves" if len(fleet) > 1:
                fleet = fleet[1:]
            case "one changes its role":
                other = Role.DECODE if fleet[-1].role is Role.PREFILL else Role.PREFILL
                fleet = [*fleet[:-1], replace(fleet[-1], role=other)]
        matches = data.draw(matches_of(fleet))
        for met, anew in zip(roster.meet(fleet, matches), Roster().meet(fleet, matches), strict=True):
            assert list(met) == list(anew)
            assert met.numbers.tolist() == anew.numbers.tolist()
            assert met.matched_tokens.tolist() == [matches.get(view.worker_id, 0) for view in met]


def test_workers_keep_their_numbers_wherever_they_are_put() -> None:
    fleet = [decode(f"d{i}", num_running=i, available_blocks=10 * i) for i in range(5)]
    workers = Workers.of(fleet, {"d3": 48})
    turned = workers.rotated(Dice(0, 1))
    assert list(turned) == Dice(0, 1).rotated(fleet) != fleet
    for some in (turned, workers.at(np.array([4, 0])), workers.where(workers.available_blocks >= 30)):
        assert some.num_running.tolist() == [view.num_running for view in some]
        assert some.matched_tokens.tolist() == [48 if view.worker_id == "d3" else 0 for view in some]
    assert [view.worker_id for view in workers.where(workers.available_blocks >= 30)] == ["d3", "d4"]
    assert workers.where(workers.available_blocks >= 0) is workers


def test_a_policy_cannot_spoil_what_is_remembered() -> None:
    workers = Workers.of([decode("d", num_running=3)], {})
    with pytest.raises(ValueError, match="read-only"):
        workers.num_running[:] += 1


class Undecided(LeastLoad):
    """A policy of somebody's own that divides by zero somewhere."""

    def prefill_cost(self, scene: Scene, worker: WorkerView) -> float:
        return nan if worker.num_running else 1.0


@pytest.mark.parametrize("num_workers", [1, 3, 40])
def test_a_cost_that_is_no_number_is_the_last_choice(num_workers: int) -> None:
    fleet = [decode(f"d{i}", num_running=1) for i in range(num_workers)]
    assert choose(*fleet, policy=Undecided()).decode_id
    assert choose(*fleet, decode("idle"), policy=Undecided(), turn=3).decode_id == "idle"


def test_a_filter_may_answer_with_any_sequence() -> None:
    """Then what the index believes of them counts all the same."""
    fleet = [decode("cold"), decode("warm"), prefill("p")]
    prompt = PromptView(160, 10, 16_000)
    for remote in ("never", "auto"):
        placed = choose(*fleet, prompt=prompt, remote=remote, matches={"warm": 144}, policy=_Listing())
        assert placed.decode_id == "warm"


class _Listing:
    """The default policy, whose filter makes lists."""

    def __init__(self) -> None:
        self._policy = MinTtft()
        self.prefill_cost, self.decode_cost = self._policy.prefill_cost, self._policy.decode_cost
        self.pick = self._policy.pick

    def filter(self, scene: Scene, workers: Workers) -> list[WorkerView]:
        return list(self._policy.filter(scene, workers))
