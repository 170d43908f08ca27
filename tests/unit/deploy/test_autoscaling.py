"""The controller's part of autoscaling, without Ray: what it sees, what it changes, what it says, what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from deploy.autoscale import AutoscaleSettings, Bounds
from deploy.autoscaling import Autoscaling
from deploy.cluster_config import ClusterConfig
from deploy.health import Vitals
from deploy.reconcile import Health, Kind, State
from deploy.saved_state import Saved
from deploy.status import ClusterStatus
from deploy.status_metrics import exposition
from deploy.status_table import table
from deploy.wanted import Wanted
from diptych.errors import BadRequest
from diptych.messages import WorkerStats

SETTINGS = AutoscaleSettings(mode="on", prefill=Bounds(max=4), decode=Bounds(max=4), down_after_s=60.0)


@dataclass
class World:
    """Processes, and what is heard of them."""

    settings: AutoscaleSettings = SETTINGS
    wanted: Wanted = field(default_factory=lambda: Wanted(counts=dict.fromkeys(Kind, 1)))
    start_s: dict[Kind, float] = field(default_factory=dict)
    probing: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    queued_tokens: int = 0

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.hosted: list[Any] = []
        self.heard: dict[str, Vitals] = {}
        for kind in Kind:
            self.add(kind, State.RUNNING)
        self.autoscaling = self.controller()

    def controller(self) -> Autoscaling:
        return Autoscaling(self.settings, self, self, lambda hosted: hosted.id in self.leaving)  # type: ignore[arg-type]

    def add(self, kind: Kind, state: State) -> Any:
        id = f"{kind}-{len(self.hosted)}"
        self.hosted.append(SimpleNamespace(id=id, kind=kind, state=state, worker_id=f"{id}@host"))
        if state is State.RUNNING:
            self.say(id)
        return self.hosted[-1]

    def say(self, id: str, **stats: Any) -> None:
        self.heard[id] = Vitals(stats=WorkerStats(blocks_total=100, blocks_free=100, **stats))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.hosted)

    def vitals(self, id: str) -> Vitals | None:
        return self.heard.get(id)

    def health(self, _id: str) -> Health:
        return Health.OK

    def is_probing(self, id: str) -> bool:
        return id in self.probing

    def look(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 1.0
            self.autoscaling.look(self.now_s)

    def overload(self, kind: Kind) -> None:
        for id in [hosted.id for hosted in self.hosted if hosted.kind is kind and hosted.state is State.RUNNING]:
            if kind is Kind.PREFILL:
                self.say(id, waiting_prefill_tokens=500_000, prefill_tokens_per_s=1_000.0)
            else:
                self.say(id, num_running=20, decode_step_ms=400.0)


def test_a_queue_that_is_too_long_makes_the_prefill_pool_grow_and_only_that() -> None:
    world = World()
    world.overload(Kind.PREFILL)
    world.look(20)
    assert world.wanted.counts[Kind.PREFILL] > 1
    assert world.wanted.counts[Kind.DECODE] == world.wanted.counts[Kind.ROUTER] == 1


def test_slow_steps_make_the_decode_pool_grow() -> None:
    world = World()
    world.overload(Kind.DECODE)
    world.look(20)
    assert world.wanted.counts[Kind.DECODE] > 1
    assert world.wanted.counts[Kind.PREFILL] == 1


def test_an_idle_pool_shrinks_after_the_window() -> None:
    world = World()
    world.add(Kind.DECODE, State.RUNNING)
    world.wanted = world.wanted.scaled({Kind.DECODE: 2})
    world.look(50)
    assert world.wanted.counts[Kind.DECODE] == 2
    world.look(30)
    assert world.wanted.counts[Kind.DECODE] == 1


def test_advice_changes_nothing_and_is_told() -> None:
    world = World(settings=msgspec.structs.replace(SETTINGS, mode="advise"))
    world.overload(Kind.DECODE)
    world.look(20)
    assert world.wanted.counts[Kind.DECODE] == 1
    status = world.autoscaling.status(world.now_s)
    assert status is not None
    assert status.pools[Kind.DECODE].wanted > 1
    assert "400.0 of 100 ms" in status.pools[Kind.DECODE].reason


def test_off_is_off() -> None:
    world = World(settings=AutoscaleSettings())
    world.overload(Kind.DECODE)
    world.look(200)
    assert world.wanted.counts[Kind.DECODE] == 1
    assert world.autoscaling.status(world.now_s) is None


def test_a_pinned_pool_stays_until_it_is_released() -> None:
    world = World()
    world.wanted = world.wanted.scaled({Kind.DECODE: 3}, pin=True)
    world.look(300)
    assert world.wanted.counts[Kind.DECODE] == 3
    world.wanted = world.wanted.released([Kind.DECODE])
    world.look(300)
    assert world.wanted.counts[Kind.DECODE] == 1
    with pytest.raises(BadRequest):
        world.wanted.released([Kind.ROUTER])


def test_a_pool_without_workers_is_left_alone() -> None:
    world = World()
    world.wanted = world.wanted.scaled({Kind.PREFILL: 0})
    world.look(100)
    assert world.wanted.counts[Kind.PREFILL] == 0


def test_a_worker_serves_when_its_canary_went_through_and_its_start_is_learnt() -> None:
    world = World()
    late = world.add(Kind.DECODE, State.STARTING)
    world.look(20)
    late.state = State.RUNNING
    world.say(late.id)
    world.probing.add(late.id)
    world.look(10)
    assert world.start_s == {}
    world.probing.clear()
    world.look(5)
    assert world.start_s[Kind.DECODE] == pytest.approx(30.0, abs=2.0)


def test_half_a_pool_silent_is_held() -> None:
    world = World()
    world.add(Kind.DECODE, State.RUNNING)
    world.wanted = world.wanted.scaled({Kind.DECODE: 2})
    for vitals in world.heard.values():
        vitals.silent_s = 100.0
    world.look(300)
    assert world.wanted.counts[Kind.DECODE] == 2
    status = world.autoscaling.status(world.now_s)
    assert status is not None
    assert "silent" in status.pools[Kind.DECODE].reason


def test_nothing_is_decided_on_the_way_down() -> None:
    world = World()
    world.wanted = world.wanted.nothing()
    world.overload(Kind.DECODE)
    world.look(60)
    assert world.wanted.counts[Kind.DECODE] == 1


def test_what_was_learnt_and_pinned_survives_a_controller() -> None:
    wanted = Wanted(counts={Kind.DECODE: 2}).scaled({Kind.DECODE: 3}, pin=True)
    saved = Saved(wanted=wanted, next_order=4, processes=[], start_s={Kind.DECODE: 12.5})
    again = msgspec.json.decode(msgspec.json.encode(saved), type=Saved)
    assert again == saved
    world = World(start_s=again.start_s, wanted=Wanted(counts=dict.fromkeys(Kind, 1)))
    world.overload(Kind.DECODE)
    world.autoscaling = world.controller()
    world.look(6)
    status = world.autoscaling.status(world.now_s)
    assert status is not None
    assert status.pools[Kind.DECODE].start_s == 12.5


def test_the_status_shows_it_in_words_and_in_numbers() -> None:
    world = World(settings=msgspec.structs.replace(SETTINGS, mode="advise"))
    world.overload(Kind.DECODE)
    world.look(20)
    status = ClusterStatus(
        name="c",
        model="m",
        wanted=world.wanted.counts,
        processes=[],
        crashes=[],
        complete=True,
        controller_pid=1,
        autoscale=world.autoscaling.status(world.now_s),
    )
    assert msgspec.json.decode(msgspec.json.encode(status), type=ClusterStatus) == status
    assert "autoscale advise" in table(status)
    assert "decode: would want" in table(status)
    assert 'diptych_processes_wanted{role="decode"} 1' in exposition(status)
    wanted = next(
        line for line in exposition(status).splitlines() if line.startswith('diptych_autoscale_wanted{role="d')
    )
    assert float(wanted.split()[-1]) > 1


def test_a_cluster_begins_within_its_bounds() -> None:
    def described(mode: str) -> dict[str, Any]:
        return {"model": "/m", "decode": {"count": 6}, "autoscale": {"mode": mode, "decode": {"min": 1, "max": 4}}}

    with pytest.raises(msgspec.ValidationError, match="1 to 4"):
        msgspec.convert(described("on"), ClusterConfig)
    assert msgspec.convert(described("advise"), ClusterConfig).autoscale.mode == "advise"
