"""The shell around placement, on a fleet whose links lead nowhere."""

from __future__ import annotations

import io
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from diptych.errors import LegFailed, NoCapacity
from diptych.messages import Role, SamplingParams, WorkerRecord, WorkerState, WorkerStats
from diptych.telemetry import make_logger
from kv_transfer.hashing import block_hashes, hash_key
from router.attempts import Attempts
from router.bookings import Bookings
from router.explain import ExplainRing
from router.fleet import Compatibility, Fleet
from router.limits import Limits
from router.placement.named import policy_named
from router.placement_metrics import PlacementMetrics
from router.placer import Placer
from router.prefix_index import PrefixIndex
from router.requests import Report, TokenRequest
from router.suspects import Suspects
from router.worker_link import WorkerLink

LIMITS = Limits(
    block_size=16,
    block_bytes=1,
    max_context=1_024,
    fingerprint="fp",
    remote_prefill="prefer",
    reserve_timeout_ms=1_000,
    max_queued=8,
    max_attempts=3,
)


class StillLink(WorkerLink):
    def __init__(self, record: WorkerRecord) -> None:
        self.record, self.connected = record, True
        self.stats = WorkerStats(blocks_free=64, prefill_tokens_per_s=1_000.0, decode_step_ms=10.0, num_running=1)


class World:
    def __init__(self, *worker_ids: str, policy: str = "min-ttft") -> None:
        self.fleet = Fleet("router", Compatibility("fp", 16), 3.0, make_logger("test", stream=io.StringIO()))
        self.index, self.bookings, self.suspects = PrefixIndex(), Bookings(), Suspects()
        self.ring = ExplainRing(8, policy, "prefer")
        self.registry = CollectorRegistry()
        metrics = PlacementMetrics(self.registry, "tiny")
        for worker_id in worker_ids:
            self.fleet.adopt(StillLink(_record(worker_id)))
            self.index.add_worker(worker_id)
        self.placer = Placer(
            LIMITS, policy_named(policy), 1, self.fleet, self.index, self.bookings, self.suspects, self.ring, metrics
        )

    def request(self, name: str = "r", seed: int = 0, **changes: Any) -> tuple[TokenRequest, list[bytes]]:
        prompt = [seed] * 100
        request = TokenRequest(name, prompt, SamplingParams(max_tokens=8, seed=1), **changes)
        return request, block_hashes(hash_key("fp", b""), prompt, 16)


def _record(worker_id: str) -> WorkerRecord:
    return WorkerRecord(
        worker_id=worker_id,
        role=Role(worker_id.split("-")[0]),
        address="127.0.0.1:1",
        state=WorkerState.READY,
        model="tiny",
        fingerprint="fp",
        block_size=16,
        num_blocks=64,
        block_bytes=1,
        max_context=1_024,
        started_at=0.0,
    )


def test_what_is_chosen_is_booked_and_believed_before_anybody_else_is_placed() -> None:
    world = World("prefill-1", "prefill-2", "decode-1")
    request, hashes = world.request()
    first = world.placer.place(request, hashes, Attempts(3), report := Report())
    assert world.bookings.load(first.placement.prefill_id).tokens == 100
    assert world.bookings.load("decode-1") == (0, 1, 7)
    assert (report.prefill_id, report.decode_id) == (first.placement.prefill_id, "decode-1")
    second = world.placer.place(*world.request("other", seed=1), Attempts(3), Report())
    assert second.placement.prefill_id != first.placement.prefill_id
    third = world.placer.place(*world.request("same"), Attempts(3), Report())
    assert third.placement.prefill_id == first.placement.prefill_id
    assert third.placement.predicted_cached == 96
    for booked in (first, second, third):
        booked.booking.release()
    assert world.bookings.total == 0


def test_the_failure_of_an_attempt_is_told_where_nobody_is_left() -> None:
    world = World("decode-1")
    attempts = Attempts(3)
    attempts.failed(LegFailed("it was lost"), ("", "decode-1"), "decode-1", set())
    with pytest.raises(LegFailed, match="it was lost"):
        world.placer.place(*world.request(), attempts, Report())
    with pytest.raises(NoCapacity):
        World("prefill-1").placer.place(*world.request(), Attempts(3), Report())


def test_a_suspect_pair_is_avoided_and_a_canary_tries_it() -> None:
    world = World("prefill-1", "decode-1")
    request, hashes = world.request()
    world.suspects.suspect(("prefill-1", "decode-1"), now=1e12)
    placed = world.placer.place(request, hashes, Attempts(3), Report())
    assert placed.placement.reason == "transfer_suspect"
    canary, hashes = world.request("canary", canary=True)
    assert world.placer.place(canary, hashes, Attempts(3), Report()).placement.prefill_id == "prefill-1"


def test_a_canary_leaves_no_trace() -> None:
    world = World("prefill-1", "decode-1")
    canary, hashes = world.request("canary", canary=True)
    world.placer.place(canary, hashes, Attempts(3), report := Report())
    world.placer.ended(canary, report, None)
    assert len(world.ring) == 0
    assert world.registry.get_sample_value("diptych_placements_total", {"model_name": "tiny"}) == 0


def test_the_crossover_is_of_the_fleet_as_it_is() -> None:
    assert World("prefill-1", "decode-1").placer.crossover() == 1  # nothing has measured a transfer: nothing to save
    assert World("decode-1").placer.crossover() == float("inf")
    with pytest.raises(NoCapacity):
        World().placer.crossover()
